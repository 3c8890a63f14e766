"""Plain values: what a simulator is started with, told to do wrong, and has received."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CONTEXT_LENGTH = 4096  # tokens


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


@dataclass(frozen=True, slots=True)
class Profile:
    """What the simulated server was started with."""

    seed: int = 0
    tokens_per_second: float = 0.0  # 0: at once
    time_to_first_token: float = 0.0  # seconds
    model: str = "simulated"
    weight_version: str = "default"
    api_key: str = ""  # "": open
    admin_api_key: str = ""
    incremental: bool = False  # --incremental-streaming-output: deltas in /generate streams
    coalesce: int = 1  # tokens per event of a stream


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; `path` with query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
