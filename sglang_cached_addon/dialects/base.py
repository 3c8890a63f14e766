"""What a dialect is: the shape of a plugin.

Pure: no I/O, no clock, no randomness (ids are minted by an argument). A sample is kept as
the complete answer that its API gives for `n=1`; `write` puts samples together into the
answer for any `n`, and `split` is its inverse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson

from sglang_cached_addon.core.admission import Probe
from sglang_cached_addon.core.call import Call, Mint, Part, Recorded, Script, Split, UpstreamCall
from sglang_cached_addon.core.families import Ended, Variant
from sglang_cached_addon.core.identity import UNKNOWN, Server

NULL = type(None)

TransportTable = Mapping[str, tuple[type, ...]]
"""Body fields that are left out of the key, each with the JSON types it is left out for (an
object: of text, or of booleans). Another value stays in the key, so that upstream can refuse it."""


class Recorder(Protocol):
    """Makes samples of a streamed answer while it comes."""

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        """Takes the parsed data of the next event; gives what it is, and the choice that it is of.
        `said` is the same data in bytes, where `repeats` is asked about the event behind it.

        Raises `Refused` for one that is not understood; after that it only tells what events
        are."""

    def repeats(self, said: bytes) -> bool:
        """Takes the data of the next event if that is known, without being parsed, to be a delta
        of the only choice. Gives whether it was; if not, `add` is to be called."""

    def split(self) -> Split:
        """The samples of a stream that has ended; raises `Refused` if they are not whole."""


Json = dict[str, Any]


class Family(Protocol):
    """What is particular to the families of greedy calls of an API (see `core.families`). Answers
    are parsed samples, `steps` their parsed `deltas`, or None where they have none."""

    def variant(self, body: Json) -> Variant | None:
        """Which call of its family it is; None for one that has fields of which nobody knows what
        they make of another limit."""

    def ask(self, body: Json, fields: Json) -> Json:
        """The body of the call of the same family that has these `Variant.fields`."""

    def ended(self, answer: Json) -> Ended | None:
        """How a sample has ended; None where that is not understood."""

    def text_at(self, answer: Json, steps: list[Any] | None, count: int) -> str | None:
        """The text that the first tokens would be as an answer; None where that is not known."""

    def spelling(self, body: Json, answer: Json, count: int) -> Json | None:
        """The body of a call of `/detokenize` that gives the text of the first tokens, and that of
        the whole answer; None where nobody can tell by these."""

    def text(self, answer: Json) -> str:
        """What an answer says."""

    def cut(self, answer: Json, steps: list[Any] | None, count: int, text: str) -> list[Any] | None:
        """Makes an answer, in place, the one that has its first tokens only, whose text that is;
        gives the steps of that. Raises `Refused` where that is not known."""

    def without_scores(self, answer: Json, steps: list[Any] | None) -> list[Any] | None:
        """Takes the log-probabilities out of an answer, in place; gives the steps of that."""


def family_of(dialect: Dialect) -> Family | None:
    """The families of an API, if it has any."""
    return getattr(dialect, "family", None)


@dataclass(frozen=True, slots=True)
class Nature:
    """How an API differs from most."""

    has_n: bool = True
    """A call may be for more than one sample."""
    shows_aborts: bool = True
    """An answer tells whether it was aborted. If not, one is stored only where nothing that may
    abort it came to upstream meanwhile, and where it has ended in good order."""
    event_names: Collection[bytes] = ()
    """The names that the events of its streams have."""
    last_events: Collection[str] = ()
    """The types that the last event of its streams may have; none where that is `[DONE]`."""
    holds_for_a_day: bool = False
    """Servers may put the date into the prompt, unless they are known not to."""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Header fields without which a server may refuse a call, and which say nothing of who makes
    it."""


USUAL = Nature()


def nature_of(dialect: Dialect) -> Nature:
    """In what an API differs from most, if it does."""
    return getattr(dialect, "nature", USUAL)


class Dialect(Protocol):
    """One HTTP API. Third parties add theirs through the entry-point group
    `sglang_cached.dialects`; the entry point names an instance. One that has families has a
    member `family`, one that is not as most are a `nature`, and one whose bodies people see in
    words a `display`."""

    @property
    def name(self) -> str:
        """The name of the API, in lower case. It is part of each key, and stays the same for
        ever."""

    @property
    def routes(self) -> Iterable[tuple[str, str]]:
        """The (method, path) pairs whose requests it reads; a path may have a query, which then
        has to be as it is there."""

    @property
    def transport(self) -> TransportTable:
        """The body fields that are not part of the key."""

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        """The bodies of the smallest calls of this API, for this model if it has a name, the
        mildest first: a server that answers one of them with a 200 lets its sender generate."""

    def read(self, body: dict[str, Any]) -> Call:
        """What a body asks for. Raises `Refused` for one that is not understood in full."""

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        """The upstream call that fetches `shortfalls[i]` samples of item i; not all of them are
        0."""

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        """Takes the parsed JSON that answers `sent` apart into samples.

        Raises `Refused` when it is not what was asked for.
        """

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        """The JSON answer to `call`, made of `n` samples of each item."""


class Generating(Dialect, Protocol):
    """An API that generates, so that its calls may be of runs, be aborted, and be streamed. A
    dialect whose calls all are `Call.is_pure` need have nothing of this."""

    def repeated(self, body: dict[str, Any], count: int) -> dict[str, Any] | None:
        """The body of a call for one prompt and one sample as one for a list of `count` equal
        prompts; None where the API has none."""

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        """The answer for `n=1`, without a token, to such a call that was aborted at this Unix time
        while it waited."""

    # Streams

    def record(self, call: Call, sent: UpstreamCall) -> Recorder:
        """A recorder of the stream that answers `sent`."""

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        """The events of these samples, at most `n` of each item, as the answer to `call`."""

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        """The event that tells the usage of a whole answer, if the API has one."""

    def without_usage(self, event: bytes, value: Any) -> bytes:
        """A delta, given as bytes and parsed, without the usage so far that only the proxy has
        asked for (`UpstreamCall.counts`)."""

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        """Changes the parsed data of an event of an upstream call into one of the client's answer:
        choice i becomes `choices[i]`. What all events of that answer share is as in the sample
        `like`."""

    def rename(self, event: Any, call: Call) -> bool:
        """Puts what is the client's own into the parsed data of an event of its answer: its ids,
        or what is echoed. Gives whether that changes anything."""

    def cut(self, event: Any) -> None:
        """Changes the parsed data of an event that has all of a choice so far (`Part.STATE`) into
        its last one, as if the choice had been aborted then."""


def probes_of(dialect: Dialect, model: str) -> list[Probe]:
    """The smallest calls of an API, as `Dialect.probes` has them."""
    fields = nature_of(dialect).fields
    return [Probe(orjson.dumps(body), fields) for body in dialect.probes(model)]


class Portioned(Protocol):
    """A dialect whose calls for long lists can be taken a portion at a time: all of them are
    `Call.is_pure`."""

    def portions(self, call: Call, size: int) -> list[Call]:
        """Calls for so many items of a call each, in its order."""


def portioned(dialect: Dialect) -> Portioned | None:
    """A dialect as such a one, if it is."""
    return cast(Portioned, dialect) if hasattr(dialect, "portions") else None


def generates(dialect: Dialect) -> bool:
    """Whether an API generates, as far as its dialect knows."""
    return hasattr(dialect, "script")


def generating(dialect: Dialect) -> Generating:
    """The dialect of a call that is not pure."""
    return cast(Generating, dialect)
