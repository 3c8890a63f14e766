"""What dialects of APIs do alike that generate nothing: each row of a list has one answer.

Pure. A row has the key that it has alone, and one that stands twice in a list is one item. How
an answer is taken apart, and put together again, is each dialect's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from types import MappingProxyType
from typing import Any, TypeVar

import orjson

from sglang_cached_addon.core.call import Call, Mint, Split, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.keys import canonical, canonical_each
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, reading, trimming
from sglang_cached_addon.dialects.base import TransportTable

T = TypeVar("T")


class Listing(ABC):
    """The dialect of such an API."""

    transport: TransportTable = MappingProxyType({})
    is_verbatim = True
    """As `Call.is_verbatim`."""

    @abstractmethod
    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        """The fields of a body whose lists have a value for each row; none where it is not for a
        list. Raises `Refused` for a body that is not understood."""

    def content(self, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of a body that are part of the key. Those that only say how an answer is
        written are not, as far as they are understood."""
        return reading.content_fields(body, self.transport)

    def asks_once(self, call: Call, server: Server) -> bool:
        """Whether the answer to a call whose list has something more than once can be made of one
        for which this server was asked for each once."""
        return True

    @abstractmethod
    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        """As `Dialect`."""

    # As `Dialect`

    def read(self, body: dict[str, Any]) -> Call:
        reading.refuse_unstorable(body)
        columns = self.columns(body)
        content = self.content(body)
        lists = [name for name in columns if name in content]
        contents = canonical_each(content, lists) if lists else [canonical(content)]
        items = {content: i for i, content in enumerate(dict.fromkeys(contents))}
        is_repeated = len(items) < len(contents)
        return Call(
            body,
            tuple(items),
            1,
            bool(columns),
            reading.read_rids(body, 1, bool(columns), len(contents)),
            is_pure=True,
            is_verbatim=self.is_verbatim,
            rows=tuple([items[content] for content in contents]) if is_repeated else (),
        )

    def portions(self, call: Call, size: int) -> list[Call]:
        """Calls for so many items of a call each, in its order."""
        firsts, columns = list(_first_rows(call).values()), self.columns(call.body)
        found = []
        for begin in range(0, len(firsts), size):
            taken, body = firsts[begin : begin + size], dict(call.body)
            trimming.take(body, columns, taken)
            rids = tuple([call.rids[row] for row in taken]) if call.rids else ()
            items = call.items[begin : begin + size]
            found.append(replace(call, body=body, items=items, rids=rids, is_part=True, rows=()))
        return found

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        order = rows_of(call)
        taken: Sequence[int] = range(len(order))
        body = dict(call.body)
        if not all(shortfalls) or (call.rows and self.asks_once(call, server)):
            firsts = _first_rows(call)
            taken = [firsts[item] for item, short in enumerate(shortfalls) if short]
            order = [order[row] for row in taken]
            trimming.take(body, self.columns(body), taken)
        rids: dict[str, str] = {}
        if call.rids:
            rids = {call.rids[row]: mint() for row in taken}
            body["rid"] = list(rids.values()) if call.batched else next(iter(rids.values()))
        return UpstreamCall(body, tuple(order), 1, rids, server)


def rows_of(call: Call) -> Sequence[int]:
    """The item of each row of a call."""
    return call.rows or range(len(call.items))


def _first_rows(call: Call) -> dict[int, int]:
    """The first row of each item, in their order."""
    firsts: dict[int, int] = {}
    for row, item in enumerate(rows_of(call)):
        firsts.setdefault(item, row)
    return firsts


def spread(call: Call, samples: Sequence[Sequence[T]]) -> list[T]:
    """The sample of each row of a call."""
    return [samples[item][0] for item in rows_of(call)]


def together(envelope: dict[str, Any], lists: Mapping[str, Iterable[bytes]]) -> bytes:
    """An answer whose members of these names are lists of values in JSON. Each is written by
    itself, so that nobody waits while a long answer is."""
    holes = dict.fromkeys(lists, orjson.Fragment(_HOLE))
    head, *tails = judging.dump({**envelope, **holes}).split(_HOLE)
    order = [name for name in {**envelope, **holes} if name in lists]
    answer = BytesIO()
    answer.write(head)
    for name, tail in zip(order, tails, strict=True):
        write_list(answer, lists[name])
        answer.write(tail)
    return answer.getvalue()


def write_list(answer: BytesIO, values: Iterable[bytes]) -> None:
    """Writes a list of values in JSON."""
    between = b"["
    for value in values:
        answer.write(between)
        answer.write(value)
        between = b","
    answer.write(b"]" if between == b"," else b"[]")


_HOLE = b"\0"
"""A byte that is in no JSON."""


def count_of(value: Any, *, texts: bool = True, ids: bool = True) -> int | None:
    """How many rows a list has, of `texts` or of lists of token `ids`; None for a lone text, or
    for the ids of one. Raises `Refused` for anything else."""
    if texts and isinstance(value, str):
        return None
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if texts and kinds == {str}:
        return len(value)
    if ids and kinds == {int}:
        return None
    if ids and kinds == {list} and all(set(map(type, each)) <= {int} for each in value):
        return len(value)
    raise Refused(Reason.MALFORMED)


def columns_of(
    body: dict[str, Any],
    count: int | None,
    per_row: Collection[str],
    shared: Collection[str] = (),
) -> tuple[str, ...]:
    """The fields whose lists have a value for each of `count` rows: of those that are
    `per_row`. A list in a `shared` field is one value for all. Raises `Refused`."""
    lists = [name for name, value in body.items() if isinstance(value, list)]
    if count is None:
        return ()
    own = [name for name in lists if name not in shared]
    if any(name not in per_row for name in own):
        raise Refused(Reason.INSEPARABLE)
    if any(len(body[name]) != count for name in own):
        raise Refused(Reason.MALFORMED)
    return tuple(own)


def first_of_each(order: Iterable[int], values: Iterable[T]) -> list[tuple[int, T]]:
    """What upstream gave for each item: its first, where it was asked for more than once."""
    found: dict[int, T] = {}
    for item, value in zip(order, values, strict=True):
        found.setdefault(item, value)
    return list(found.items())
