"""What may be looked up, and what may be stored; every "no" has a name.

Pure. A reason reaches the user in `Cache-Status` (`detail`), in the log line and in a counter of
`/cache/stats`. Rules about heads of requests are in `refusals`; those that need to know one API's
fields live in its dialect, which raises `Refused` with a reason from here. Unknown means: forward
untouched, and do not store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Self

from sglang_cached_addon.core.directives import Directives

MAX_N = 10_000
"""How many samples of one prompt a call may want; SGLang has no bound of its own."""

MAX_BODY = 10 * 1024 * 1024
"""How many bytes a request body may have that is looked up; a larger one is passed on unread."""

MAX_SAMPLES = 10_000
"""How many samples a call may want that is looked up: that takes 35 ms."""

MAX_STREAM = 256 << 20
"""Bytes of a stream that is recorded. A longer one, or one without end, is passed on only."""

LARGE_SAMPLES = 1000
"""From how many samples on an answer is handled beside the event loop: it takes 7 ms or more."""

MAX_NAMES = 1024 * 1024
"""How many bytes a request body may have that is read to see which adapter it names."""


class Reason(StrEnum):
    """Why a call was not looked up, or its answer not stored: the value, which is public, and what
    it means, for people."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        self = str.__new__(cls, value)
        self._value_, self.meaning = value, meaning
        return self

    # not looked up: the call is passed on untouched (bypass)
    ROUTE = "route", "another route: passed on, with no headers added"
    AUDIO = "audio", "`/v1/audio/*`: a body in parts, and long audio is several generations"
    OLLAMA = "ollama", "Ollama's routes, where an aborted answer looks as if it were whole"
    REALTIME = "realtime", "`/v1/realtime`: a conversation, none of whose parts is an answer"
    FILE = "file", "`/generate_from_file`: the prompt is in a file"
    STREAM = (
        "stream",
        "a stream with fields that it answers in another form than JSON does, as "
        "`return_hidden_states`",
    )
    INVALID_JSON = "invalid-json", "not JSON as SGLang reads it, or integers beyond 64 bits"
    DUPLICATE_KEY = "duplicate-key", "an object with a key twice"
    MALFORMED = (
        "malformed",
        "no prompt, an odd `n` (0, negative, text, over 10,000), other wrong types",
    )
    CONTENT_TYPE = "content-type", "not `application/json`"
    ENCODED = "encoded", "a compressed body"
    QUERY = "query", "a query behind the path"
    HEADER = (
        "header",
        "`x-sglext-*`, and `x-override-*` but for `-priority` and `-conversation-id`: they change "
        "what is asked or returned; a `Connection` that names headers of the message",
    )
    CROSS_ORIGIN = "cross-origin", "a browser's `Origin`, which the answer's CORS headers depend on"
    TOO_LARGE = (
        "too-large",
        "what would hold others up: a body over 10 MiB, or of over 700,000 numbers or so; over "
        "10,000 samples, 200,000 inputs; an answer over 512 MiB, a stream over 256 MiB",
    )
    STATE = (
        "state",
        "state held by the server: `session_params`, `previous_response_id`, `audio` of a chat, "
        "`/open_session`, `/close_session`; of `/v1/responses` also `conversation`, `background`, "
        "`prompt`, `request_id`, and `store` where the server may keep the answer",
    )
    SERVER_TOOLS = "server-tools", "tools that the server itself uses, live, such as `web_search`"
    MEDIA = "media-by-reference", "media by URL or path, which may change behind an equal body"
    DISAGGREGATION = "disaggregation", "`bootstrap_*` and the like, of prefill and decode servers"
    BEAM = "beam", "beam search"
    BEST_OF = "best-of", "`best_of` above 1: where it is heeded, each sample is the best of several"
    INSEPARABLE = "inseparable", "a list or `n > 1` with fields that cannot be told apart by prompt"
    ONE_CHOICE = "one-choice", "`n > 1` on a server that gives one choice, whatever `n` says"
    HTTP_1_0 = "http-1.0", "a stream for a client that cannot be answered in chunks"
    NO_STORE = "no-store", "the client asked for it: `Cache-Control: no-store`"
    OFF = "off", "`--mode off`"
    NO_MODEL = "no-model", "the upstream does not say, or has not yet said, which model it serves"
    UNAUTHORIZED = (
        "unauthorized",
        "a credential that the upstream has not accepted: it is asked itself",
    )
    # not looked up further: neither stored nor to be fetched
    ONLY_IF_CACHED = "only-if-cached", "not stored, and the client wants nothing else: 504"
    OFFLINE = "offline", "not stored, and `--mode offline` asks nobody: 504"
    # looked up and forwarded, but the answer is not stored
    STATUS = "status", "the upstream's status is not 200"
    ERROR = "error", "an error in a 200"
    ABORT = "abort", "an aborted sample; where that may not show, any abort or pause meanwhile"
    UNFINISHED = "unfinished", "a sample without a finish reason"
    MIXED_WEIGHTS = "mixed-weights", "the model's weights changed during the generation"
    NO_USAGE = "no-usage", "a stream that does not tell its usage, which a JSON answer has"
    SHARED_USAGE = (
        "shared-usage",
        "an answer of many samples that tells only what they came to, not each one's tokens",
    )
    LOST_LOGPROBS = (
        "lost-logprobs",
        "a stream without the log-probabilities of some tokens, which a JSON answer has",
    )
    UNREADABLE = (
        "unreadable-answer",
        "an answer that is not what was asked for, or a stream with an event of more than 64 MiB",
    )
    OTHER_WEIGHTS = (
        "other-weights",
        "the answer names another `weight_version` than the upstream does",
    )
    MODEL_CHANGED = (
        "model-changed",
        "the model behind the URL changed, or may have, while the answer was on its way",
    )
    UNCONFIRMED = "unconfirmed", "the upstream could not be asked whether it is the same model"
    SEVERAL = (
        "several-servers",
        "several servers take turns behind the URL, as a balancer has them that sends each request "
        "elsewhere: nobody knows which one has answered",
    )
    READONLY = "readonly", "`--mode readonly`"
    CLEARED = "cleared", "the cache was cleared while the answer was on its way"
    DISK = "disk", "the disk takes nothing, and 64 MB wait for it already"
    LARGE_SAMPLE = (
        "large-sample",
        "a sample of over 480,000 values, as 4 MB of log-probabilities are: to read it would hold "
        "up all others",
    )
    UNREACHABLE = "unreachable", "no connection to the upstream"
    CUT = "cut", "the upstream, or the client, hung up before the answer was complete"
    ALTERED = "altered", "an addon of mitmproxy has changed what was asked, or the answer"
    KILLED = "killed", "the call to the upstream was killed in mitmproxy"


class Refused(Exception):
    """A call that is not looked up, or an answer that is not stored."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def store_refusal(status: int) -> Reason | None:
    """Why an answer with this status is not stored."""
    return None if status == 200 else Reason.STATUS


class Mode(StrEnum):
    """What the whole proxy does with the cache; the values of `--mode`."""

    READWRITE = "readwrite"
    READONLY = "readonly"
    REFRESH = "refresh"
    OFFLINE = "offline"
    OFF = "off"


class Restart(StrEnum):
    """Whether a new process of the same model is taken for the former one: `--restart`."""

    SAME = "same"
    NEW = "new"


class Fsync(StrEnum):
    """When what is written is made to outlive a power cut: before the next is written, within a
    second, or only at the end; the values of `--fsync`."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a request may be answered from the store, and its answer be stored."""

    since: float = -inf
    """The time in Unix seconds before which stored samples do not count."""
    refusal: Reason | None = None
    """Why upstream's answer to it is not stored."""
    denial: Reason | None = None
    """Why upstream may not be asked."""

    @property
    def replaces(self) -> bool:
        """New samples take the places of those that do not count."""
        return self.since > -inf and self.refusal is None


PLAIN = Terms()
_READONLY = Terms(refusal=Reason.READONLY)
_OFFLINE = Terms(refusal=Reason.OFFLINE, denial=Reason.OFFLINE)


def terms(mode: Mode, asked: Directives, now: float) -> Terms | Reason:
    """The terms that follow from the proxy's mode and a client's directives (RFC 9111 §5.2.1),
    whichever is stricter; a reason where the request is to be passed on untouched."""
    if mode is Mode.OFF:
        return Reason.OFF
    if asked.is_default and mode is not Mode.REFRESH:
        return {Mode.READONLY: _READONLY, Mode.OFFLINE: _OFFLINE}.get(mode, PLAIN)
    denial = Reason.ONLY_IF_CACHED if asked.only_if_cached else None
    if mode is Mode.OFFLINE:
        denial = Reason.OFFLINE
    if asked.no_store:
        return Terms(inf, Reason.NO_STORE, denial) if denial else Reason.NO_STORE
    refusal = Reason.READONLY if mode is Mode.READONLY else None
    if asked.no_cache or mode is Mode.REFRESH:
        return Terms(inf, refusal, denial)
    if asked.max_age is not None:
        return Terms(now - asked.max_age, refusal, denial)
    return Terms(-inf, refusal, denial)
