"""A simulator of SGLang 0.5.23's HTTP server, for demonstrations and tests. It is no model.

It draws words from a fixed list and says so: server `sglang-simulator`, model `simulated`.
Keys, their order, JSON types, errors and stream framing (one event per HTTP chunk) are those
of SGLang 0.5.23. At temperature 0 an answer is a pure function of seed, model and prompt;
otherwise a counter is mixed in, so that samples differ and a whole run can be repeated.
Words are tokens, times are seconds, rates are tokens per second. `Simulator` lives in one
event loop; its counters may be read, `faults` filled and `release` called from any thread.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import enum
import hmac
import json
import random
import re
import socket
import threading
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

Json = dict[str, Any]
Prompt = str | list[int]

CONTEXT_LENGTH = 4096  # tokens
_LEXICON = """
the of and to in is you that it he was for on are as with his they at be this have from or one
had by word but not what all were we when your can said there use an each which she do how their
if will up other about out many then them these so some her would make like him into time has
look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also
around form three small set put end does another well large must big even such because turn here
why ask went men read need land different home us move try kind hand picture again change off play
spell air away animal house point page letter mother answer found study still learn should world
"""
WORDS = _LEXICON.split()
FIRST_ID = 1000  # id of WORDS[0]
EOS_ID = 2
_IDS = {word: FIRST_ID + place for place, word in enumerate(WORDS)}
_ABORTED: Json = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
_GENERATE, _COMPLETIONS, _CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
_DEFAULT_LIMIT = {_GENERATE: 128, _COMPLETIONS: 16, _CHAT: 32}
_FIELD_NAMES = (
    "max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty "
    "presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag "
    "ignore_eos skip_special_tokens spaces_between_special_tokens no_stop_trim stream_interval "
    "logit_bias sampling_seed custom_params beam_width watermark choice"
)
_SAMPLING_FIELDS = _FIELD_NAMES.split()
_WHERE = {  # SGLang names the place of a validation error in its own source
    _GENERATE: (928, "generate_request"),
    _COMPLETIONS: (1860, "openai_v1_completions"),
    _CHAT: (1870, "openai_v1_chat_completions"),
    "/abort_request": (1721, "abort_request"),
    "/tokenize": (1906, "openai_v1_tokenize"),
    "/update_weights_from_disk": (1300, "update_weights_from_disk"),
}


class Fault(enum.StrEnum):
    """What goes wrong with one sampling request; see `Simulator.faults`."""

    ERROR_503 = "error_503"  # the queue is full
    ABORT = "abort"  # status 200, half the text, each finish reason is abort
    CUT = "cut"  # half of the body, then the socket is closed
    TWO_WEIGHTS = "two_weights"  # the weights changed half way
    NOT_JSON = "not_json"  # status 200, `not json` (as the only event of a stream)
    TOO_FEW = "too_few"  # one sample fewer than asked
    ERROR_BODY = "error_body"  # status 200, an error object (as the only event of a stream)
    HOLD = "hold"  # waits for `Simulator.release`, an abort or the client's leaving


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


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; `path` with query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """A finished answer in place of samples."""

    def __init__(self, status: int, body: Json | bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Flaw(ValueError):
    """A wrong value; the route decides how it is told to the client."""

    def __init__(self, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.kind = kind


class Left(Exception):
    """The client has left."""


@dataclass(slots=True)
class Ask:
    """A checked sampling request: `n` samples for each prompt, prompt by prompt."""

    route: str
    body: Json
    prompts: list[Prompt]
    params: list[Json]  # of each prompt
    many: bool  # a list was given: rids are numbered, /generate answers a list
    n: int = 1
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def samples(self) -> int:
        return max(1, self.n)

    def option(self, name: str) -> Any:
        return (self.body.get("stream_options") or {}).get(name)

    def item(self, name: str, run: Run, default: Any) -> Any:
        """A field that may be given once or as a list with one value per prompt."""
        value = self.body.get(name)
        if isinstance(value, list):
            value = value[run.index // self.samples]
        return default if value is None else value


@dataclass(slots=True)
class Run:
    """One sample on its way: all it will say, and how much of that is out by now."""

    index: int
    rid: str
    prompt: Prompt
    tokens: list[str]
    ids: list[int]
    text: str  # without the matched stop string
    reason: Json  # finish_reason once it is over
    spans: list[tuple[str, float]]  # weight versions, and the share of the tokens each ends at
    thinking: int = 0  # leading tokens that are reasoning
    tool: str = ""  # name of the function called; the text is its arguments
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    started: float = field(default_factory=time.perf_counter)
    count: int = 0  # tokens so far
    sent: int = 0  # tokens in the events so far
    silent: bool = True  # no event yet
    over: bool = False
    told: bool = False  # the end has been handed on
    aborted: bool = False  # by a client

    def advance(self, count: int) -> None:
        self.count = min(count, len(self.ids))
        self.over = self.count == len(self.ids)

    def abort(self) -> None:
        if not self.over:
            self.over = self.aborted = True
            self.reason = dict(_ABORTED)
            del self.tokens[self.count :], self.ids[self.count :]
            self.text = "".join(self.tokens)

    def said(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end`, as far as it is not trimmed."""
        head = len("".join(self.tokens[:start]))
        return self.text[head : len("".join(self.tokens[:end]))]

    @property
    def finish(self) -> Json | None:
        return self.reason if self.over else None

    @property
    def reasoning(self) -> int:
        return min(self.count, self.thinking)

    def weight_versions(self) -> list[Json]:
        starts = [0, *(int(share * self.count) for _, share in self.spans)]
        return [
            {"version": self.spans[i][0], "start": starts[i], "end": starts[i + 1]}
            for i in range(len(self.spans))
        ]


# ---------------------------------------------------------------- words, tokens, probabilities


def pieces(prompt: Prompt) -> list[str]:
    """The texts of a prompt's tokens; they join to the prompt's text."""
    if isinstance(prompt, str):
        return re.findall(r"\s*\S+(?:\s+$)?", prompt) or [prompt]
    words = [WORDS[number % len(WORDS)] for number in prompt]
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def token_ids(prompt: Prompt) -> list[int]:
    """One id per word: its place in WORDS, or a number made from its letters."""
    if not isinstance(prompt, str):
        return prompt
    words = [piece.strip() for piece in pieces(prompt)]
    return [_IDS.get(word, 2000 + zlib.crc32(word.encode()) % 30000) for word in words]


def speak(places: list[int], stops: list[str], lead: str) -> tuple[list[str], str, Json]:
    """Tokens (the first after `lead`) to the first stop string, the text before it, the finish."""
    tokens: list[str] = []
    text = ""
    for place in places:
        tokens.append((" " if tokens else lead) + WORDS[place])
        text += tokens[-1]
        hit = next((stop for stop in stops if stop and stop in text), None)
        if hit is not None:
            return tokens, text[: text.index(hit)], {"type": "stop", "matched": hit}
    return tokens, text, {"type": "length", "length": len(tokens)}


def arguments(schema: Json, dice: random.Random) -> str:
    """JSON arguments for a function with these parameters, one value per property."""
    makers: dict[str, Callable[[], Any]] = {
        "integer": lambda: dice.randrange(100),
        "number": lambda: dice.randrange(1000) / 10,
        "boolean": lambda: dice.random() < 0.5,
        "array": list,
        "object": dict,
    }
    properties = schema.get("properties") or {}
    return json.dumps(
        {
            name: makers.get(str(value.get("type")), lambda: dice.choice(WORDS))()
            for name, value in properties.items()
        },
        ensure_ascii=False,
    )


def likely(number: int, place: int, top: int) -> list[tuple[float, int]]:
    """The log-probability and id of a token, then those of less likely ones: `top`, at least 1."""
    first = -0.1 - (number * 7919 + place * 104729) % 3000 / 1000
    offsets = range(max(1, top))
    base = number - FIRST_ID
    others = [FIRST_ID + (base + 37 * offset) % len(WORDS) for offset in offsets]
    return [(first - 0.5 * k, number if k == 0 else others[k]) for k in offsets]


def word(number: int) -> str:
    return f" {WORDS[(number - FIRST_ID) % len(WORDS)]}"


def scored(prompt: Prompt, tokens: list[str], ids: list[int], since: int, top: int) -> list[Json]:
    """The tokens from `since` on with their probabilities, as the chat route names them."""

    def entry(text: str, value: float) -> Json:
        return {"token": text, "bytes": list(text.encode()), "logprob": value}

    found = []
    for place in range(since, len(tokens)):
        best = likely(ids[place], place, top)
        tops = [entry(tokens[place] if k == 0 else word(i), v) for k, (v, i) in enumerate(best)]
        found.append({**entry(tokens[place], best[0][0]), "top_logprobs": tops[:top]})
    return found


# ---------------------------------------------------------------- answers


def native_logprobs(ask: Ask, run: Run, since: int) -> Json:
    """The log-probability keys of `meta_info`, or none."""
    chat = ask.route == _CHAT
    if not (ask.body.get("logprobs") if chat else ask.item("return_logprob", run, False)):
        return {}
    top = int(ask.item("top_logprobs" if chat else "top_logprobs_num", run, 0))
    texts = chat or bool(ask.body.get("return_text_in_logprobs"))
    start = -1 if chat else int(ask.item("logprob_start_len", run, -1))

    def rows(tokens: list[str], ids: list[int], begin: int) -> tuple[list[Any], list[Any]]:
        best = [likely(ids[k], k, top) for k in range(begin, len(ids))]
        own = [
            [b[0][0], ids[begin + k], tokens[begin + k] if texts else None]
            for k, b in enumerate(best)
        ]
        tops = [[[v, i, word(i) if texts else None] for v, i in b[:top]] for b in best]
        return own, tops

    ids = token_ids(run.prompt)
    given, given_top = rows(pieces(run.prompt), ids, start if start >= 0 else len(ids))
    if given:  # nothing comes before the first token that could make it likely
        given[0][0], given_top[0] = None, None
    own, own_top = rows(run.tokens[: run.count], run.ids[: run.count], since)
    answer = {
        "input_token_logprobs": given,
        "output_token_logprobs": own,
        "output_token_logprobs_length": run.count,
    }
    if top:
        answer |= {"input_top_logprobs": given_top, "output_top_logprobs": own_top}
    return answer


def meta_info(ask: Ask, run: Run, since: int = 0, stamped: bool = True) -> Json:
    """The native `meta_info` after `run.count` tokens."""
    now = time.perf_counter()
    return {
        "id": run.rid,
        "finish_reason": run.finish,
        "prompt_tokens": len(token_ids(run.prompt)),
        "weight_version": run.spans[-1][0],
        "num_retractions": 0,
        **native_logprobs(ask, run, since),
        "reasoning_tokens": run.reasoning,
        "completion_tokens": run.count,
        "cached_tokens": 0,
        **({"weight_versions": run.weight_versions()} if run.over else {}),
        "cached_tokens_details": None,
        "dp_rank": None,
        **({"e2e_latency": now - run.started} if run.over else {}),
        **({"response_sent_to_client_ts": time.time()} if stamped else {}),
    }


def native_item(ask: Ask, run: Run, since: int = 0, stamped: bool = True) -> Json:
    """A sample of /generate, from token `since` on."""
    return {
        "text": run.said(since, run.count),
        "output_ids": run.ids[since : run.count],
        "meta_info": meta_info(ask, run, since, stamped),
    }


def usage(runs: list[Run], stride: int) -> Json:
    """Token counts: prompts once per `stride` samples, completions of all."""
    prompt = sum(len(token_ids(runs[k].prompt)) for k in range(0, len(runs), stride))
    completion, reasoning = sum(run.count for run in runs), sum(run.reasoning for run in runs)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "reasoning_tokens": reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning} if reasoning else None,
    }


def completion_logprobs(ask: Ask, run: Run, since: int) -> Json | None:
    top = ask.body.get("logprobs")
    if top is None:
        return None
    rows = scored(run.prompt, run.tokens[: run.count], run.ids, since, int(top))
    if ask.body.get("echo") and since == 0:
        rows = scored(run.prompt, pieces(run.prompt), token_ids(run.prompt), 0, int(top)) + rows
        rows[0].update(logprob=None, top_logprobs=None)
    tops = [row["top_logprobs"] for row in rows]
    return {
        "text_offset": [-1] * len(rows),
        "token_logprobs": [row["logprob"] for row in rows],
        "tokens": [row["token"] for row in rows],
        "top_logprobs": [t and {e["token"]: e["logprob"] for e in t} for t in tops] if top else [],
    }


def completion_choice(ask: Ask, run: Run, since: int = 0) -> Json:
    """A choice of /v1/completions, whole or from token `since` on."""
    echo = "".join(pieces(run.prompt)) if ask.body.get("echo") and since == 0 else ""
    return {
        "index": run.index,
        "text": echo + run.said(since, run.count),
        "logprobs": completion_logprobs(ask, run, since),
        "finish_reason": run.reason["type"] if run.over else None,
        "matched_stop": run.reason.get("matched") if run.over else None,
    }


def chat_logprobs(ask: Ask, run: Run, since: int = 0) -> Json | None:
    if not ask.body.get("logprobs"):
        return None
    top = int(ask.body.get("top_logprobs") or 0)
    return {"content": scored(run.prompt, run.tokens[: run.count], run.ids, since, top)}


def tool_call(name: str | None, call_id: str | None, text: str) -> Json:
    function = {"name": name, "arguments": text}
    return {"id": call_id, "index": 0, "type": "function", "function": function}


def chat_choice(ask: Ask, run: Run) -> Json:
    """A whole choice of /v1/chat/completions."""
    split = run.thinking if ask.body.get("separate_reasoning", True) else 0
    message: Json = {
        "role": "assistant",
        "content": "" if run.tool else run.said(split, run.count),
        "reasoning_content": run.said(0, split) or None,
    }
    if run.tool and run.reason["type"] != "abort":
        message["tool_calls"] = [tool_call(run.tool, run.call_id, run.text)]
        run.reason = {"type": "tool_calls", "matched": None}
    choice = {
        "index": run.index,
        "message": message,
        "logprobs": chat_logprobs(ask, run),
        "finish_reason": run.reason["type"],
        "matched_stop": run.reason.get("matched"),
    }
    if ask.body.get("return_meta_info"):
        choice["meta_info"] = meta_info(ask, run)
    return choice


def answer(ask: Ask, runs: list[Run]) -> Any:
    """The whole answer to a request without `stream`."""
    if ask.route == _GENERATE:
        items = [native_item(ask, run) for run in runs]
        return items if ask.many or ask.n > 1 or not items else items[0]
    chat = ask.route == _CHAT
    choices = [chat_choice(ask, run) if chat else completion_choice(ask, run) for run in runs]
    metadata = {}
    if runs:
        metadata = {
            "weight_version": runs[0].spans[-1][0],
            "weight_versions": runs[0].weight_versions(),
        }
    return {
        "id": runs[0].rid if runs else uuid.uuid4().hex,
        "object": "chat.completion" if chat else "text_completion",
        "created": ask.created,
        "model": ask.body.get("model", "default"),
        "choices": choices,
        "usage": usage(runs, ask.n),
        "metadata": metadata,
    }


def chunk(ask: Ask, rid: str, choices: list[Json]) -> Json:
    """The envelope of a stream event of the /v1 routes."""
    kind = "chat.completion.chunk" if ask.route == _CHAT else "text_completion"
    model = ask.body.get("model", "default")
    return {"id": rid, "object": kind, "created": ask.created, "model": model, "choices": choices}


def chat_events(ask: Ask, run: Run) -> Iterator[Json]:
    def event(delta: Json, logprobs: Json | None = None, **more: Any) -> Json:
        choice = {"index": run.index, "delta": delta, "logprobs": logprobs}
        choices = [{**choice, "finish_reason": None, "matched_stop": None}]
        counts = {"usage": usage([run], 1)} if ask.option("continuous_usage_stats") else {}
        return {**chunk(ask, run.rid, choices), **more, **(counts if delta_says(delta) else {})}

    def delta_says(delta: Json) -> bool:
        return "role" not in delta or "tool_calls" in delta

    def call(*parts: Any) -> Json:
        empty = {"role": None, "content": None, "reasoning_content": None}
        return event({**empty, "tool_calls": [tool_call(*parts)]}, usage=None)

    if run.silent:
        yield event({"reasoning_content": None, "role": "assistant", "content": ""})
        if run.tool:
            yield call(run.tool, run.call_id, "")
    if run.tool:
        if text := run.said(run.sent, run.count):
            yield call(None, None, text)
        return
    split = run.thinking if ask.body.get("separate_reasoning", True) else 0
    logprobs = chat_logprobs(ask, run, run.sent)
    if thought := run.said(run.sent, min(run.count, split)):
        yield event({"reasoning_content": thought}, logprobs)
        logprobs = None
    if text := run.said(max(run.sent, split), run.count):
        yield event({"reasoning_content": None, "content": text}, logprobs)


def events(ask: Ask, run: Run, incremental: bool) -> Iterator[Json]:
    """The stream events for the tokens a run has got since its last event."""
    if ask.route == _CHAT:
        yield from chat_events(ask, run)
    elif ask.route == _GENERATE:
        item = native_item(ask, run, run.sent if incremental else 0, run.silent)
        yield {**item, "index": run.index} if ask.many or ask.n > 1 else item
    else:
        counts = usage([run], 1) if ask.option("continuous_usage_stats") else None
        yield {**chunk(ask, run.rid, [completion_choice(ask, run, run.sent)]), "usage": counts}


def last_events(ask: Ask, ended: list[Run], last: str) -> Iterator[Json]:
    """What follows once all samples of a stream are over; `last` is the id that spoke last."""
    if ask.route == _CHAT:
        for run in ended:
            stopped = run.tool and run.reason["type"] == "stop"
            yield chunk(ask, last, [{
                "index": run.index,
                "delta": {"reasoning_content": None},
                "logprobs": None,
                "finish_reason": "tool_calls" if stopped else run.reason["type"],
                "matched_stop": run.reason.get("matched"),
            }])  # fmt: skip
    if ask.route != _GENERATE and ask.option("include_usage"):
        # the first sample of each prompt stands for the prompt
        counts = usage(sorted(ended, key=lambda run: run.index), ask.samples)
        if ask.route == _COMPLETIONS:
            counts = {name: value for name, value in counts.items() if value is not None}
        yield {**chunk(ask, last, []), "usage": counts}


# ---------------------------------------------------------------- reading requests


def openai_error(status: int, message: str, kind: str) -> Refusal:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return Refusal(status, body)


def invalid(path: str, *flaws: Json) -> Refusal:
    """The 400 of a body that does not fit its schema."""
    line, function = _WHERE[path]
    head = f"{len(flaws)} validation error{'s' if len(flaws) > 1 else ''}:\n"
    where = f'\n\n  File "sglang/srt/entrypoints/http_server.py", line {line}, in {function}\n'
    text = head + "\n".join(f"  {flaw}" for flaw in flaws) + where + f"    POST {path} {[*flaws]}"
    return openai_error(400, text, "Bad Request")


def flaw(kind: str, loc: tuple[Any, ...], text: str, given: Any, **ctx: Any) -> Json:
    found = {"type": kind, "loc": ("body", *loc), "msg": text, "input": given}
    return {**found, "ctx": ctx} if ctx else found


def document(path: str, content_type: str, raw: bytes) -> Json:
    """The JSON object in a body, or a Refusal."""
    essence = content_type.split(";")[0].strip().lower()
    if essence != "application/json" and path.startswith("/v1/"):
        text = "Unsupported Media Type: Only 'application/json' is allowed"
        found = {"loc": ["header", "content-type"], "msg": text, "type": "value_error"}
        raise openai_error(400, f"1 validation error:\n  {found} [{found}]", "Bad Request")
    if not raw:
        raise invalid(path, flaw("missing", (), "Field required", None))
    value: Any = raw
    if essence == "application/json" or (essence.startswith("application/") and "+json" in essence):
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as wrong:
            at = (wrong.pos,)
            found = flaw("json_invalid", at, "JSON decode error", {}, error=wrong.msg)
            raise invalid(path, found) from None
    if isinstance(value, dict):
        return value
    if path.startswith("/v1/"):
        text = "Input should be a valid dictionary or object to extract fields from"
        raise invalid(path, flaw("model_attributes_type", (), text, value))
    name = {_GENERATE: "GenerateReqInput"}.get(path, _WHERE[path][1])
    text = f"Input should be a dictionary or an instance of {name}"
    raise invalid(path, flaw("dataclass_type", (), text, value, class_name=name))


def whole(path: str, body: Json, name: str, default: int) -> int:
    """An integer field of a /v1 route; numerals and whole floats are taken."""
    value = body.get(name, default)
    kind, text = "int_type", "Input should be a valid integer"
    if isinstance(value, str):
        if re.fullmatch(r"\s*[+-]?\d+\s*", value):
            return int(value)
        kind, text = "int_parsing", f"{text}, unable to parse string as an integer"
    elif isinstance(value, float):
        if value.is_integer():
            return int(value)
        kind, text = "int_from_float", f"{text}, got a number with a fractional part"
    elif isinstance(value, int):
        return int(value)
    raise invalid(path, flaw(kind, (name,), text, value))


def strings_or(value: Any, items: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(item, items) for item in value)


def check_native(body: Json) -> None:
    """What SGLang checks before it opens a stream: types, and names of sampling parameters."""
    if not isinstance(body.get("stream", False), bool):
        text = "Input should be a valid boolean, unable to interpret input"
        raise invalid(_GENERATE, flaw("bool_parsing", ("stream",), text, body["stream"]))
    kinds: list[tuple[str, type, str, str]] = [
        ("text", str, "string", "str"), ("rid", str, "string", "str"),
        ("sampling_params", dict, "dictionary", "dict[str,any]"),
    ]  # fmt: skip
    for name, kind, noun, label in kinds:
        value = body.get(name)
        if value is None or isinstance(value, kind) or strings_or(value, kind):
            continue
        of_one = flaw(f"{noun[:6] if kind is str else 'dict'}_type", (name, label),
                      f"Input should be a valid {noun}", value)  # fmt: skip
        of_list = flaw("list_type", (name, f"list[{label}]"), "Input should be a valid list", value)
        raise invalid(_GENERATE, *((of_one, of_list) if kind is str else (of_list, of_one)))
    for params in as_list(body.get("sampling_params")):
        for name, value in params.items():
            if name not in _SAMPLING_FIELDS:
                expected = ", ".join(f"`{known}`" for known in _SAMPLING_FIELDS)
                text = f"unknown field `{name}`, expected one of {expected}"
                raise Refusal(400, {"error": text})
            if name in ("n", "max_new_tokens") and type(value) not in (int, type(None)):
                raise Refusal(400, {"error": f"invalid type: {rust(value)}, expected i64"})


def rust(value: Any) -> str:
    """A JSON value as SGLang's schema check names it."""
    named = {str: "string {}", float: "floating point `{}`", bool: "boolean `{}`"}
    kind = named.get(type(value), "map" if isinstance(value, dict) else "sequence")
    return kind.format(orjson.dumps(value).decode())


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def read_native(body: Json) -> Ask:
    check_native(body)
    text: Any = body.get("text")
    ids: Any = body.get("input_ids")
    if text is None and ids is None:
        raise Flaw("Either text, input_ids or input_embeds should be provided.")
    if ids is not None and not ids:
        raise Flaw("input_ids cannot be empty.")
    many = isinstance(text, list) if ids is None else isinstance(ids[0], list)
    given = text if ids is None else ids
    prompts: list[Prompt] = given if many else [given]
    params: Any = body.get("sampling_params") or {}
    if isinstance(params, list) and (not many or len(params) < len(prompts)):
        raise Refusal(500, b"Internal Server Error")
    each: list[Json] = params if isinstance(params, list) else [params] * len(prompts)
    wanted = [one.get("n", 1) for one in (each or [{}])]
    if None in wanted:
        raise Refusal(500, b"Internal Server Error")
    if len(set(wanted)) > 1:
        raise Flaw("The parallel_sample_num should be the same for all samples in sample params.")
    return Ask(_GENERATE, body, prompts, each, many, max(1, wanted[0]))


def read_completions(body: Json) -> Ask:
    if "prompt" not in body:
        raise invalid(_COMPLETIONS, flaw("missing", ("prompt",), "Field required", body))
    prompt = body["prompt"]
    if not (isinstance(prompt, str) or strings_or(prompt, (str, int, list))):
        labels = ("list[int]", "list[list[int]]", "str", "list[str]")
        nouns = {label: "string" if label == "str" else "list" for label in labels}
        text = "Input should be a valid "
        raise invalid(_COMPLETIONS, *(
            flaw(f"{noun}_type", ("prompt", label), text + noun, prompt)
            for label, noun in nouns.items()
        ))  # fmt: skip
    if not prompt:
        raise Flaw("Prompt cannot be empty")
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    limit = whole(_COMPLETIONS, body, "max_tokens", 16)
    if limit <= 0:
        wrong = ValueError("max_tokens must be positive")
        text = f"Value error, {wrong}"
        raise invalid(_COMPLETIONS, flaw("value_error", ("max_tokens",), text, limit, error=wrong))
    return read_openai(_COMPLETIONS, body, prompt if many else [prompt], limit, many)


def read_chat(body: Json) -> Ask:
    if "messages" not in body:
        given = {**body, "tool_choice": body.get("tool_choice", "none")}
        raise invalid(_CHAT, flaw("missing", ("messages",), "Field required", given))
    messages, choice = body["messages"], body.get("tool_choice")
    if not strings_or(messages, dict):
        text = "Input should be a valid list"
        raise invalid(_CHAT, flaw("list_type", ("messages",), text, messages))
    if not messages:
        raise Flaw("Messages cannot be empty.")
    if choice == "required" and not body.get("tools"):
        raise Flaw("Tools cannot be empty if tool choice is set to required.")
    if body.get("return_meta_info") and body.get("stream"):
        text = "return_meta_info is not supported with streaming. "
        text += "Please set stream=false when using return_meta_info=true."
        raise Flaw(text, "BadRequest")
    name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    absent = body.get(name) is None
    limit = _DEFAULT_LIMIT[_CHAT] if absent else whole(_CHAT, body, name, 0)
    return read_openai(_CHAT, body, [render(body)], limit, False)


def render(body: Json) -> str:
    """The prompt that a chat template would make of a request."""
    parts = []
    for message in body["messages"]:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else orjson.dumps(content).decode()
        parts.append(f"<{message.get('role')}> {text}")
    for name in ("tools", "response_format", "chat_template_kwargs"):
        if body.get(name):
            parts.append(orjson.dumps(body[name]).decode())
    return "\n".join([*parts, "<assistant>"])


def read_openai(route: str, body: Json, prompts: list[Prompt], limit: int, many: bool) -> Ask:
    """The end of reading for both /v1 routes."""
    n = whole(route, body, "n", 1)
    if n == 0 and not body.get("stream"):  # a stream does not count by strides of n
        raise Flaw("range() arg 3 must not be zero", "BadRequest")
    params = {"max_new_tokens": limit, "stop": body.get("stop"), "top_k": body.get("top_k")}
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            params[name] = float(body[name])
    return Ask(route, body, prompts, [params] * len(prompts), many, n)


_READERS = {_GENERATE: read_native, _COMPLETIONS: read_completions, _CHAT: read_chat}


def check_params(params: Json) -> None:
    """Raise a Flaw for a sampling parameter out of range."""
    limit, heat, top_p = (params.get(name) for name in ("max_new_tokens", "temperature", "top_p"))
    if heat is not None and heat < 0:
        raise Flaw(f"temperature must be a non-negative finite number, got {heat}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise Flaw(f"top_p must be in (0, 1], got {top_p}.")
    if limit is not None and limit < 0:
        raise Flaw(f"max_new_tokens must be at least 0, got {limit}.")


def rids(ask: Ask) -> list[str]:
    """One request id per sample; the client's only where SGLang keeps it."""
    rid = ask.body.get("rid")
    total = len(ask.prompts) * ask.samples
    if isinstance(rid, list):
        if not ask.many and ask.samples == 1:
            text = "Internal server error: unhashable type: 'list'"
            crash = openai_error(500, text, "InternalServerError")
            raise Refusal(500, b"Internal Server Error") if ask.route == _GENERATE else crash
        if len(rid) != len(ask.prompts):
            text = "The specified rids length mismatch with the batch_size for batch processing."
            raise Flaw(text)
        twice = sorted({one for one in rid if rid.count(one) > 1})
        if twice:
            raise Flaw(f"Duplicate request IDs detected within the request: {twice}")
    if rid is None or ask.samples > 1:
        return [uuid.uuid4().hex for _ in range(total)]
    if isinstance(rid, list):
        return rid
    return [f"{rid}_{place}" for place in range(total)] if ask.many else [rid]


# ---------------------------------------------------------------- the server


class Job:
    """The samples of one request, and what can end them early."""

    def __init__(self, runs: list[Run], held: bool) -> None:
        self.runs, self.held, self.gone = runs, held, False
        self.wake = asyncio.Event()

    async def nap(self, until: float | None) -> bool:
        """Sleep until a time of the loop's clock (None: for ever); True when woken before."""
        left = None if until is None else until - asyncio.get_running_loop().time()
        if left is not None and left <= 0 and not self.wake.is_set():
            await asyncio.sleep(0)
        elif not self.wake.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wake.wait(), left)
        woken = self.wake.is_set()
        self.wake.clear()
        if self.gone:
            raise Left
        return woken

    def news(self) -> Iterator[Run]:
        """The runs that ended and have not been handed on."""
        for run in self.runs:
            if run.over and not run.told:
                run.told = True
                yield run

    async def steps(self, profile: Profile) -> AsyncIterator[Run]:
        """Each run each time it has got a token, at the pace of the profile, up to its end."""
        while self.held and not all(run.over for run in self.runs):
            await self.nap(None)
            for run in self.news():
                yield run
        start = asyncio.get_running_loop().time() + profile.time_to_first_token
        pace = 1 / profile.tokens_per_second if profile.tokens_per_second > 0 else 0.0
        step = 0
        while not all(run.told for run in self.runs):
            step += 1
            while await self.nap(start + step * pace):
                for run in self.news():
                    yield run
            for run in self.runs:
                if run.told:
                    continue
                if not run.over:
                    run.advance(step)
                run.told = run.over
                yield run


DEFAULT_PROFILE = Profile()


class Simulator:
    """The server: what it does (`profile`, `faults`) and what it saw and did (the rest)."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        self.profile = profile  # may be replaced at any time
        self.received: list[Received] = []  # in order of arrival
        self.samples = 0  # generated and sent in full
        self.tokens = 0  # completion tokens of these
        self.running = 0  # samples in progress, held ones too
        self.aborted = 0  # samples ended by /abort_request or because the client left
        self.faults: collections.deque[Fault] = collections.deque()
        self.url = ""
        self.jobs: set[Job] = set()
        self.sockets: set[EchoHandler] = set()
        self.startup_time: Json = {}
        self._drawn = 0  # samples drawn at temperature > 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: HTTPServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port (0: any free one). Raises OSError when it is taken."""
        began = time.perf_counter()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        routes: list[Any] = [
            (r"/v1/realtime", EchoHandler, {"simulator": self}),
            (r".*", Handler, {"simulator": self}),
        ]
        self._server = HTTPServer(Application(routes, log_function=lambda handler: None))
        self._server.add_socket(listener)
        bound: int = listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        self.startup_time = {"load_weight": 0.0, "scheduler_e2e": time.perf_counter() - began,
                             "tokenizer_e2e": time.perf_counter()}  # fmt: skip
        return bound

    async def stop(self) -> None:
        """Close the listener and all connections; no sample runs on."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stop()
        for job in self.jobs:
            job.gone = True
            job.wake.set()
        for handler in list(self.sockets):
            handler.drop()
        await server.close_all_connections()
        while self.jobs or self.sockets:
            await asyncio.sleep(0)

    def release(self) -> None:
        """Let all held requests go on; from any thread."""

        def free() -> None:
            for job in self.jobs:
                job.held = False
                job.wake.set()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(free)

    def abort(self, rid: str, everything: bool) -> None:
        """End running samples: all, or those whose id begins with the id of a running one."""
        runs = {run.rid: (job, run) for job in self.jobs for run in job.runs}
        if everything or rid in runs:
            for name, (job, run) in runs.items():
                if everything or name.startswith(rid):
                    run.abort()
                    job.wake.set()

    def open(self, ask: Ask, fault: Fault | None) -> Job:
        """Check the values of a request and begin its samples."""
        names = rids(ask)
        for params, prompt in zip(ask.params, ask.prompts, strict=False):
            check_params(params)
            length = len(token_ids(prompt))
            if length >= CONTEXT_LENGTH:
                text = f"The input ({length} tokens) is longer than the model's context length"
                raise Flaw(f"{text} ({CONTEXT_LENGTH} tokens).")
        busy = {run.rid for job in self.jobs for run in job.runs if not run.over}
        for name in names:
            if name in busy:
                raise Flaw(f"Duplicate request ID detected: {name}")
        runs = [self._run(ask, index, name, fault) for index, name in enumerate(names)]
        job = Job(runs[:-1] if fault is Fault.TOO_FEW else runs, fault is Fault.HOLD)
        self.jobs.add(job)
        self.running += len(job.runs)
        return job

    def close(self, job: Job, sent: bool) -> None:
        """End a job once; `sent`: the client gets, or would have got, all of its answer."""
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        self.running -= len(job.runs)
        for run in job.runs:
            if run.aborted or (job.gone and not run.told):
                self.aborted += 1
            elif sent and run.reason["type"] != "abort":
                self.samples += 1
                self.tokens += run.count

    def _run(self, ask: Ask, index: int, rid: str, fault: Fault | None) -> Run:
        prompt, params = ask.prompts[index // ask.samples], ask.params[index // ask.samples]
        heat, profile = params.get("temperature"), self.profile
        key = f"{profile.seed}|{profile.model}|{prompt!r}"
        if not (heat is not None and heat < 1e-6) and params.get("top_k") != 1:
            self._drawn += 1
            key += f"|{self._drawn}"
        dice = random.Random(key)
        limit = params.get("max_new_tokens")
        limit = _DEFAULT_LIMIT[ask.route] if limit is None else limit
        room = min(limit, CONTEXT_LENGTH - len(token_ids(prompt)))
        places = dice.choices(range(len(WORDS)), k=room)
        lead = "" if ask.route == _CHAT else " "
        tokens, text, reason = speak(places, as_list(params.get("stop")), lead)
        ids = [FIRST_ID + place for place in places[: len(tokens)]]
        spans = [(profile.weight_version, 1.0)]
        if fault is Fault.TWO_WEIGHTS:
            spans = [(profile.weight_version, 0.5), (f"{profile.weight_version}-next", 1.0)]
        run = Run(index, rid, prompt, tokens, ids, text, reason, spans)
        if ask.route == _CHAT:
            self._chat(ask, run, dice)
        if fault is Fault.ABORT:
            half = len(run.ids) // 2
            run.text, run.reason = run.said(0, half), dict(_ABORTED)
            del run.tokens[half:], run.ids[half:]
        return run

    def _chat(self, ask: Ask, run: Run, dice: random.Random) -> None:
        """Turn a plain sample into reasoning and answer, or into a tool call, as asked."""
        if (ask.body.get("chat_template_kwargs") or {}).get("enable_thinking") is True:
            run.thinking = (len(run.ids) + 1) // 2
        choice = ask.body.get("tool_choice")
        named = isinstance(choice, dict) and choice.get("function", {}).get("name")
        tools = [tool["function"] for tool in ask.body.get("tools") or []]
        fitting = [tool for tool in tools if not named or tool["name"] == named]
        if fitting and (choice == "required" or named):
            tool = dice.choice(fitting)
            run.tool, run.thinking = tool["name"], 0
            run.text = arguments(tool.get("parameters") or {}, dice)
            run.tokens = re.findall(r"\S+\s*", run.text)
            run.ids = [dice.choice(list(_IDS.values())) for _ in run.tokens]
            run.reason = {"type": "stop", "matched": EOS_ID}


# ---------------------------------------------------------------- handlers


class Recorder(RequestHandler):
    """Records each request; the headers are the simulator's."""

    def initialize(self, simulator: Simulator) -> None:
        self.sim = simulator

    def set_default_headers(self) -> None:
        self.clear_header("Content-Type")
        self.set_header("Server", "sglang-simulator")
        self.set_header("Vary", "Origin")

    def prepare(self) -> None:
        request = self.request
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        path = request.uri or request.path
        self.sim.received.append(Received(request.method or "", path, headers, request.body))


class Handler(Recorder):
    """All HTTP routes: credentials, then the route, then its method."""

    job: Job | None = None  # the samples asked for
    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")

    def compute_etag(self) -> str | None:
        return None

    def on_connection_close(self) -> None:
        if self.job is not None:
            self.job.gone = True
            self.job.wake.set()

    def reply(self, status: int, body: Any, kind: str = "application/json") -> None:
        """Answer with JSON, or with bytes as they are."""
        self.set_status(status)
        if kind:
            self.set_header("Content-Type", kind)
        self.finish(body if isinstance(body, bytes) else orjson.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.reply(status_code, b"Internal Server Error", "text/plain; charset=utf-8")

    def permitted(self) -> bool:
        path, profile = self.request.path, self.sim.profile
        if self.request.method == "OPTIONS" or path.startswith(("/health", "/ready", "/metrics")):
            return True
        admin = path in _ADMIN and profile.admin_api_key
        wanted = profile.admin_api_key if admin else profile.api_key
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        given = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), wanted.encode())
        return not wanted or given

    async def serve(self) -> None:
        path, method = self.request.path, self.request.method or ""
        if not self.permitted():
            self.clear_header("Vary")
            self.reply(401, {"error": "Unauthorized"})
        elif path not in _ROUTES and path.rstrip("/") in _ROUTES:
            query = f"?{self.request.query}" if self.request.query else ""
            self.set_header("Location", f"http://{self.request.host}{path.rstrip('/')}{query}")
            self.reply(307, b"", "")
        elif path.startswith("/v1/models/") and method == "GET":
            self.one_model(path.removeprefix("/v1/models/"))
        elif path not in _ROUTES:
            self.reply(404, {"detail": "Not Found"})
        elif method not in _ROUTES[path][0]:
            self.set_header("Allow", ", ".join(_ROUTES[path][0]))
            self.reply(405, {"detail": "Method Not Allowed"})
        else:
            try:
                await _ROUTES[path][1](self)
            except Refusal as refusal:
                plain = isinstance(refusal.body, bytes)
                kind = "text/plain; charset=utf-8" if plain else "application/json"
                self.reply(refusal.status, refusal.body, kind)

    get = head = post = delete = patch = put = options = serve

    def document(self) -> Json:
        kind = self.request.headers.get("Content-Type", "")
        return document(self.request.path, kind, self.request.body)

    async def sample(self) -> None:
        faults = self.sim.faults
        fault = faults.popleft() if faults else None
        if fault is Fault.ERROR_503:
            raise openai_error(503, "The request queue is full.", "503")
        body = self.document()
        try:
            ask = _READERS[self.request.path](body)
            if fault in _BODIES:
                await self.whole(ask.stream, _BODIES[fault])
                return
            self.job = self.sim.open(ask, fault)
        except ValueError as wrong:
            await self.refuse(bool(body.get("stream")), wrong)
            return
        try:
            await (self.stream if ask.stream else self.collect)(ask, self.job, fault)
        except (Left, StreamClosedError):
            self.job.gone = True
            self.cut(self.job)
        finally:
            self.sim.close(self.job, sent=False)

    async def refuse(self, stream: bool, wrong: ValueError) -> None:
        """Tell a wrong value in the manner of the route."""
        if self.request.path != _GENERATE:
            raise openai_error(400, str(wrong), getattr(wrong, "kind", "BadRequest"))
        error: Json = {"message": str(wrong)}
        if not stream:
            raise Refusal(400, {"error": error})
        error |= {"type": "invalid_request_error", "code": 400, "retryable": False}
        await self.whole(True, orjson.dumps({"error": error}))

    async def whole(self, stream: bool, body: bytes) -> None:
        """Answer 200 with one body, or with a stream of one event."""
        if not stream:
            self.reply(200, body)
            return
        await self.emit(body)
        await self.emit(b"[DONE]")

    async def emit(self, data: bytes) -> None:
        """One event, one HTTP chunk."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.write(b"data: " + data + b"\n\n")
        await self.flush()

    def cut(self, job: Job) -> None:
        """Close the socket where the answer stands."""
        self.sim.close(job, sent=False)
        self.detach().close()

    async def collect(self, ask: Ask, job: Job, fault: Fault | None) -> None:
        async for _ in job.steps(self.sim.profile):
            pass
        body = orjson.dumps(answer(ask, job.runs))
        if fault is Fault.CUT:
            self.set_header("Content-Type", "application/json")
            self.set_header("Content-Length", str(len(body)))
            self.write(body[: len(body) // 2])
            await self.flush()
            self.cut(job)
            return
        self.sim.close(job, sent=True)  # before the client can look
        self.reply(200, body)

    async def stream(self, ask: Ask, job: Job, fault: Fault | None) -> None:
        profile, ended, last = self.sim.profile, [], ""
        half = max((len(run.ids) for run in job.runs), default=0) // 2
        async for run in job.steps(profile):
            for event in events(ask, run, profile.incremental):
                await self.emit(orjson.dumps(event))
            run.silent, run.sent, last = False, run.count, run.rid
            if run.over:
                ended.append(run)
            if fault is Fault.CUT and run.count >= half:
                self.cut(job)
                return
        for event in last_events(ask, ended, last):
            await self.emit(orjson.dumps(event))
        self.sim.close(job, sent=True)
        await self.emit(b"[DONE]")

    async def abort(self) -> None:
        body = self.document()
        self.sim.abort(str(body.get("rid") or ""), bool(body.get("abort_all")))
        self.reply(200, b"", "")

    async def flush_cache(self) -> None:
        text = "Cache flushed.\nPlease check backend logs for more details. (When there are running"
        text += " or waiting requests, the operation will not be performed.)\n"
        self.reply(400 if self.sim.running else 200, text.encode(), "")

    async def update_weights(self) -> None:
        body = self.document()
        if not isinstance(body.get("model_path"), str):
            missing = flaw("missing", ("model_path",), "Field required", body)
            raise invalid(self.request.path, missing)
        old = self.sim.profile
        version = body.get("weight_version") or old.weight_version
        self.sim.profile = replace(old, model=body["model_path"], weight_version=version)
        text = "Succeeded to update model weights."
        self.reply(200, {"success": True, "message": text, "num_paused_requests": 0})

    async def tokenize(self) -> None:
        body = self.document()
        prompt = body.get("prompt")
        if (prompt is None) == (body.get("messages") is None):
            wrong = ValueError("Exactly one of 'prompt' or 'messages' must be provided.")
            found = flaw("value_error", (), f"Value error, {wrong}", body, error=wrong)
            raise invalid(self.request.path, found)
        prompt = render(body) if prompt is None else prompt
        ids = [token_ids(one) for one in as_list(prompt)]
        counts = [len(one) for one in ids]
        single = not isinstance(prompt, list)
        tokens, count = (ids[0], counts[0]) if single else (ids, counts)
        self.reply(200, {"tokens": tokens, "count": count, "max_model_len": CONTEXT_LENGTH})

    async def model_info(self) -> None:
        self.reply(200, model_info(self.sim.profile))

    async def server_info(self) -> None:
        self.reply(200, server_info(self.sim))

    async def models(self) -> None:
        self.reply(200, {"object": "list", "data": [model_card(self.sim.profile)]})

    def one_model(self, name: str) -> None:
        if name == self.sim.profile.model:
            self.reply(200, model_card(self.sim.profile))
            return
        error = {"message": f"The model '{name}' does not exist", "type": "invalid_request_error"}
        self.reply(404, {"error": {**error, "param": "model", "code": "model_not_found"}})

    async def nothing(self) -> None:
        self.reply(200, b"", "")

    async def root(self) -> None:
        self.reply(200, "simulated SGLang is running")


class EchoHandler(WebSocketHandler, Recorder):
    """Sends back each message of a WebSocket."""

    def check_origin(self, origin: str) -> bool:
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        self.sim.sockets.add(self)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.sim.sockets.discard(self)

    def drop(self) -> None:
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            self.ws_connection.stream.close()
        self.sim.sockets.discard(self)


def model_card(profile: Profile) -> Json:
    card = {"id": profile.model, "object": "model", "created": int(time.time())}
    card |= {"owned_by": "sglang", "root": profile.model, "parent": None}
    return {**card, "max_model_len": CONTEXT_LENGTH}


def model_info(profile: Profile) -> Json:
    """The answer of /model_info."""
    none = dict.fromkeys(("family", "task", "execution", "attention"), "none")
    return {
        "model_path": profile.model,
        "served_model_name": profile.model,
        "tokenizer_path": profile.model,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": profile.weight_version,
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "simulated",
        "architectures": ["Simulated"],
        "embedding": {
            **none,
            "pooling": "model_defined",
            "normalize": False,
            "postprocessor": "none",
            "tokenizer_special_tokens": "model_default",
            "supports_dimensions": False,
            "supports_token_embeddings": False,
            "supports_multimodal": False,
            "requires_embedding_flag": False,
            "auto_enable_embedding": False,
            "bcg_eligibility": "disabled",
            "safe_disable_kv_cache": False,
            "safe_disable_radix_cache": False,
            "safe_disable_chunked_prefill": False,
            "enabled": False,
            "matryoshka_dimensions": [],
            "bcg": {
                "prefill_backend": "disabled",
                "enabled": False,
                "capture_token_budget": 4096,
                "capture_batch_sizes": [4, 8, 16],
            },
            "cache": {
                "kv_cache_disabled": False,
                "radix_cache_disabled": False,
                "chunked_prefill_disabled": False,
            },
        },
    }


def server_info(simulator: Simulator) -> Json:
    """A subset of /server_info, keys in the order of SGLang; the keys are shown in clear."""
    profile = simulator.profile
    return {
        "model_path": profile.model,
        "tokenizer_path": profile.model,
        "context_length": None,
        "revision": None,
        "dtype": "auto",
        "quantization": None,
        "kv_cache_dtype": "auto",
        "tp_size": 1,
        "random_seed": profile.seed,
        "api_key": profile.api_key or None,
        "admin_api_key": profile.admin_api_key or None,
        "served_model_name": profile.model,
        "weight_version": profile.weight_version,
        "chat_template": None,
        "enable_cache_report": False,
        "sampling_defaults": "model",
        "stream_interval": 1,
        "incremental_streaming_output": profile.incremental,
        "enable_deterministic_inference": False,
        "launch_command": "simulated",
        "status": "ready",
        "max_total_num_tokens": 2 * CONTEXT_LENGTH,
        "max_req_input_len": CONTEXT_LENGTH - 6,
        "startup_time": simulator.startup_time,
        "internal_states": [{"last_gen_throughput": 0.0}],
        "version": "0.5.23",
        "frontend": "python",
    }


_BODIES: dict[Fault | None, bytes] = {
    Fault.NOT_JSON: b"not json",
    Fault.ERROR_BODY: b'{"error":{"message":"simulated"}}',
}
_ADMIN = {"/abort_request", "/flush_cache", "/update_weights_from_disk"}
_ROUTES: dict[str, tuple[tuple[str, ...], Callable[[Handler], Awaitable[None]]]] = {
    _GENERATE: (("PUT", "POST"), Handler.sample),
    _COMPLETIONS: (("POST",), Handler.sample),
    _CHAT: (("POST",), Handler.sample),
    "/abort_request": (("POST",), Handler.abort),
    "/flush_cache": (("GET", "POST"), Handler.flush_cache),
    "/update_weights_from_disk": (("POST",), Handler.update_weights),
    "/tokenize": (("POST",), Handler.tokenize),
    "/v1/models": (("GET",), Handler.models),
    "/": (("GET", "HEAD"), Handler.root),
    **dict.fromkeys(("/model_info", "/get_model_info"), (("GET",), Handler.model_info)),
    **dict.fromkeys(("/server_info", "/get_server_info"), (("GET",), Handler.server_info)),
    **dict.fromkeys(("/health", "/health_generate", "/ping"), (("GET",), Handler.nothing)),
}


@contextlib.contextmanager
def running(profile: Profile = DEFAULT_PROFILE, port: int = 0) -> Iterator[Simulator]:
    """A simulator in a thread of its own: ready on entry, all closed and joined on exit."""
    simulator = Simulator(profile)
    ready: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()

    async def live() -> None:
        try:
            await simulator.start(port=port)
        except OSError as error:
            ready.set_exception(error)
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        ready.set_result(lambda: loop.call_soon_threadsafe(ended.set))
        await ended.wait()
        await simulator.stop()

    thread = threading.Thread(target=asyncio.run, args=(live(),), name="sglang-simulator")
    thread.start()
    try:
        end = ready.result()
        try:
            yield simulator
        finally:
            end()
    finally:
        thread.join()
