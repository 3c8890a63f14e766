"""What becomes of an answer of upstream's: the samples in it, and the bytes that its client gets.

Pure. A large answer is not in memory more than twice, samples and all: it is read a sample at a
time (`slices`), given back as soon as it was read, and written again a choice at a time, with a
pause behind each, in which others have their turn. That belongs into a thread.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from math import inf
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Split, UpstreamCall, take_out
from sglang_cached_addon.core.neighbours import VLLM
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.dialects.judging import dump
from sglang_cached_addon.service import slices
from sglang_cached_addon.service.slices import LARGE, LARGEST, Pause

_STEP = 128 << 10
"""Bytes that are searched for ids in one go, in 4 ms or so."""

_MINTED = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
"""An id as `Mint` gives it."""

_COLON = re.compile(rb"\s*:")


def take(
    dialect: Dialect, call: Call, sent: UpstreamCall, body: BytesIO, *, is_whole: bool, pause: Pause
) -> tuple[Split | Reason, bytes]:
    """The samples of the answer to an upstream call, or why there are none, and what its client is
    shown of it, where it `is_whole` all of what that has asked for. The body is emptied where it is
    not shown as it is."""
    raw = body.getvalue()
    is_large = len(raw) > LARGE
    # What answers a trimmed call has to be read, however large a sample is.
    largest = LARGEST if is_whole else inf
    try:
        if is_large and not sent.added:
            return slices.split(dialect, call, sent, raw, largest, pause), raw
        bounds = largest, pause
        answer = slices.read(raw, sent.added, *bounds) if is_large else slices.parse(raw)
    except Refused as refused:
        if sent.added and refused.reason is Reason.LARGE_SAMPLE:
            raw = _without_added(sent, raw, pause)
        return refused.reason, raw
    is_rewritten = bool(sent.added) and _has_choices(answer)
    if is_rewritten:
        raw = b""
        body.close()
    found: Split | Reason
    try:
        found = dialect.split(call, sent, answer)
    except Refused as refused:
        found = refused.reason
    if is_rewritten and (is_whole or isinstance(found, Reason)):
        raw = write(sent, answer, pause)
    return found, raw


def _has_choices(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("choices"), list)


def write(sent: UpstreamCall, answer: dict[str, Any], pause: Pause = lambda: None) -> bytes:
    """An answer of choices, without what only we have asked for. They are used up by that, so that
    it is not in memory twice."""
    choices = deque(answer["choices"])
    answer["choices"].clear()

    def each() -> Iterator[bytes]:
        while choices:
            choice = choices.popleft()
            take_out(sent, choice)
            yield dump(choice)

    return _joined(sent, answer, each(), pause)


def _joined(
    sent: UpstreamCall, envelope: dict[str, Any], choices: Iterable[bytes], pause: Pause
) -> bytes:
    """An answer of what is around its choices, and of these."""
    take_out(sent, envelope)
    # A byte that is in no JSON.
    head, tail = orjson.dumps({**envelope, "choices": orjson.Fragment(b"\0")}).split(b"\0")
    answer = BytesIO()
    answer.write(head)
    between = b"["
    for choice in choices:
        answer.write(between)
        answer.write(choice)
        between = b","
        pause()
    answer.write(b"]" if between == b"," else b"[]")
    answer.write(tail)
    return answer.getvalue()


def _without_added(sent: UpstreamCall, body: bytes, pause: Pause) -> bytes:
    """An answer of which a choice is too large to be read, without what only we have asked for."""
    try:
        samples = slices.Samples(body, inf, pause)
        places = list(samples.places())
        choices = (_cut(sent, body[start:end]) for start, end in places)
        return _joined(sent, samples.envelope(), choices, pause)
    except slices.Odd:
        # It is read in one go, however long that holds others up: nothing else tells what is ours.
        answer = slices.parse(body)
        return write(sent, answer, pause) if _has_choices(answer) else body


def _cut(sent: UpstreamCall, choice: bytes) -> bytes:
    """As `take_out`, of a choice that was not read. Its members are told by its braces."""
    names, depth = [], 0
    for token in slices.TOKEN.finditer(choice):
        if token[0] == b"{":
            depth += 1
        elif token[0] == b"}":
            depth -= 1
        elif depth == 1 and _COLON.match(choice, token.end()):
            names.append(token)
    ends = [name.start() for name in names[1:]] + [choice.rindex(b"}")]
    added = {b'"%b"' % name.encode() for name in sent.added}
    kept = []
    for name, end in zip(names, ends, strict=True):
        if name[0] not in added:
            kept.append(choice[name.start() : end].rstrip(b", \t\r\n"))
        elif sent.server.engine == VLLM:
            kept.append(name[0] + b":null")
    return b"{" + b",".join(kept) + b"}"


def with_client_rids(body: bytes, rids: Mapping[str, str], pause: Pause = lambda: None) -> bytes:
    """Upstream's bytes with the client's ids in place of ours.

    Ours are unique strings, so that wherever SGLang echoes one, it is one of these.
    """
    if not rids:
        return body
    names = {unique.encode(): orjson.dumps(rid)[1:-1] for rid, unique in rids.items()}
    view, copied, renamed = memoryview(body), 0, BytesIO()
    for begin in range(0, len(body), _STEP):
        end = begin + _STEP  # what begins before it is looked at with what is behind
        for match in _MINTED.finditer(body, begin, end + 33):
            if match.start() < end and match[0] in names:
                renamed.write(view[copied : match.start()])
                renamed.write(names[match[0]])
                copied = match.end()
        if copied < end:
            renamed.write(view[copied:end])
            copied = end
        pause()
    return renamed.getvalue()
