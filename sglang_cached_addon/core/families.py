"""Greedy reuse: whether a stored greedy answer is also the answer to another call of its family.

Pure. Calls of one family are equal but for how many tokens an answer may have, and for the
log-probabilities that they ask for. What decides for a server is what it says of itself: `Reuse`.
Knows no bodies and no answers: a dialect tells a call's `Variant`, and how a sample has `Ended`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import Any

import orjson

FAMILY = "greedy-family"
"""What stands for the name of an API where variants are stored."""

MOST_TOKENS = 1 << 30
"""No limit is as high as this."""

_CHECKED = (0, 5, 23)
"""The first version of SGLang that was seen to say `stop` of an answer whose last token, by the
limit, ends it; former ones say `length`."""

_OTHERWISE = ("dllm_algorithm", "preferred_sampling_params", "enable_watermark")
"""What a server is started with where its greedy answers depend on more than the tokens before
each: a model that writes blocks, a limit of its own for calls without one, a watermark. So do those
of a server of another frontend, and of a former one that has a draft model, which may go beyond the
end of an answer."""

_PARSERS = ("reasoning_parser", "tool_call_parser")
_PARSED = ("DeepseekV3", "DeepseekV4", "GptOss", "Inkling", "KimiK3")
"""Models whose chats SGLang parses without being told to, as their architectures begin."""

_THRESHOLDS = ("speculative_accept_threshold_single", "speculative_accept_threshold_acc")
"""Below 1, what a draft model proposes may be taken though it is not the likeliest."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a server's greedy answers can be used for, as far as it tells."""

    is_possible: bool = False
    """They depend on the tokens before them alone."""
    room: int = 0
    """A prompt and its limit that are no more tokens than this together are never refused."""
    is_parsed: bool = False
    """A parser may take reasoning, or calls of tools, out of the text of a chat."""
    stops_at_limit: bool = False
    """An answer whose last token, by the limit, ends it, has stopped."""


NONE = Reuse()


def told(server: Any, info: Any) -> str:
    """What a server's parsed `/server_info` and `/model_info` say of its greedy answers, as
    `reuse` reads it; empty where these depend on more, or nobody knows."""
    if not isinstance(server, dict) or not isinstance(info, dict):
        return ""
    both = (server, info)
    depends = any(said.get(name) for name in _OTHERWISE for said in both)
    depends |= any(server.get(name, 1.0) != 1.0 for name in _THRESHOLDS)
    depends |= bool(server.get("speculative_algorithm")) and not _is_checked(server.get("version"))
    if depends or server.get("frontend", "python") != "python":
        return ""
    room, architectures = server.get("max_req_input_len"), info.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    is_parsed = any(said.get(name) for name in _PARSERS for said in both)
    is_parsed |= any(str(name).startswith(_PARSED) for name in names)
    return f"{room if type(room) is int else 0}{' parsed' if is_parsed else ''}"


def reuse(said: str, version: str) -> Reuse:
    """What `told` has said, of a server of this version."""
    if not (found := re.fullmatch(r"(\d+)( parsed)?", said)):
        return NONE
    return Reuse(True, int(found[1]), bool(found[2]), _is_checked(version))


def _is_checked(version: Any) -> bool:
    """Whether a server is as new as the one that all this was seen of."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", str(version))
    return numbers is not None and tuple(map(int, numbers.groups())) >= _CHECKED


def named(fields: dict[str, Any]) -> bytes:
    """Compact JSON of fields, whatever their order."""
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Variant:
    """What tells a call from others of its family."""

    limit: float
    """How many tokens an answer may have; infinite where the context is all that bounds it."""
    fields: dict[str, Any]
    """The fields of the body that say so, and those that ask for log-probabilities."""
    scores: bytes
    """JSON of those of these that ask for log-probabilities; empty where the call wants none."""
    least: int = 0
    """How many tokens an answer has at least."""
    has_grammar: bool = False
    """A grammar may end the answer, too."""
    is_chat: bool = False
    """What is generated may be parsed: into reasoning, calls of tools and the rest."""

    @property
    def name(self) -> bytes:
        """JSON of the fields, equal for equal ones."""
        return named(self.fields)

    def may_serve(self, other: Variant) -> bool:
        """Whether an answer to a call of this variant has all that one of the other wants."""
        return self.name != other.name and (not other.scores or self.scores == other.scores)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a sample has ended."""

    tokens: int
    """How many tokens it has."""
    prompt: int
    """How many tokens its prompt has."""
    has_stopped: bool
    """It has ended by itself, and not by its limit."""


def limit_of(value: Any) -> float | None:
    """A limit as a body has it; None for what is none, or is the server's to judge."""
    return value if type(value) is int and 0 < value < MOST_TOKENS else None


def fit(wanted: Variant, has: Variant, ended: Ended, server: Reuse) -> int | None:
    """How many tokens of a sample of the variant `has` are the answer to a call of the variant
    `wanted`: all of them for the sample as it is, fewer for one that is cut; None where they are
    not, or nobody knows."""
    limit, tokens = wanted.limit, ended.tokens
    if limit < wanted.least or tokens < 1:
        return None
    if limit == has.limit:
        return tokens
    if tokens > limit:
        is_parsed = wanted.has_grammar or (wanted.is_chat and server.is_parsed)
        return None if is_parsed else int(limit)
    if tokens == limit:
        is_same = not ended.has_stopped or (server.stops_at_limit and not wanted.has_grammar)
    else:  # upstream refuses a limit that the context has no room for
        is_known = limit <= has.limit < inf or ended.prompt + limit <= server.room
        is_same = ended.has_stopped and (limit == inf or is_known)
    return tokens if is_same else None
