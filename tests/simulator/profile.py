"""Plain values: what a simulator is started with, told to do wrong, and has received."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sglang_cached_addon.simulator import profile as small

CONTENT = ("weights", "dtype", "quantization", "revision", "chat_template")
"""The fields that decide what is said besides seed, model and prompt."""
_OLD = frozenset({"/get_model_info", "/get_server_info", "/v1/models"})
_ALL = _OLD | {"/model_info", "/server_info"}
INFO_ROUTES = {
    "sglang": _ALL,
    "old": _OLD,
    "openai": frozenset({"/v1/models"}),
    "none": frozenset(),
}
"""The routes that tell of the model, on servers of several ages and makes."""


class Fault(enum.StrEnum):
    """What goes wrong with one sampling request; see `Simulator.faults`."""

    ERROR_503 = "error_503"  # the queue is full
    ABORT = "abort"  # status 200, half the text, each finish reason is abort
    CUT = "cut"  # half of the body, then the socket is closed
    TWO_WEIGHTS = "two_weights"  # the weights changed half way
    NOT_JSON = "not_json"  # status 200, `not json` (as the only event of a stream)
    TOO_FEW = "too_few"  # one sample fewer than asked
    ERROR_BODY = "error_body"  # status 200, an error object (as the only event of a stream)
    ERROR_EVENT = "error_event"  # half of a stream, an error event, [DONE]; else ERROR_503
    HOLD = "hold"  # waits for `Simulator.release`, an abort or the client's leaving
    PAUSE = "pause"  # the same after half of the tokens, whose events are sent
    UNAUTHORIZED = "unauthorized"  # status 401, whatever the key
    OTHER_VERSION = "other_version"  # whole, but of weights that /model_info does not name


@dataclass(frozen=True)
class Profile(small.Profile):
    """What the simulated server was started with.

    An answer at temperature 0 is a function of seed, model, the names in `CONTENT`, the adapter
    that was asked for and what its name stands for, and of the prompt.
    """

    served_model_name: str = ""  # "": the model's
    weights: str = ""  # what is loaded; no route shows it, save the sums of /weights_checker
    dtype: str = "auto"  # this and the next are in /server_info only
    quantization: str = ""  # "": none
    revision: str = ""
    chat_template: str = ""
    lora_paths: tuple[str, ...] = ()  # adapters loaded at the start, as `name=path`
    admin_api_key: str = ""  # "a,b": either
    stream_response_default_include_usage: bool = False
    enable_response_store: bool = False
    model_type: str = "simulated"
    info: str = "sglang"  # what tells of the model, a key of INFO_ROUTES; the others are 404
    has_tokenize: bool = True  # /tokenize is there
    info_delay: float = 0.0  # seconds before /model_info and /server_info answer

    @property
    def served(self) -> str:
        return self.served_model_name or self.model


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; `path` with query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
