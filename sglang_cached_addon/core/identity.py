"""Who answers: what a server says of itself, as a name for its model.

Pure: takes parsed documents and requests, gives names and numbers. A name (`Identity.digest`)
changes with all that a server tells of its model and settings. What it does not tell, weights
that change under an equal name, is counted by `Epochs` where the change passes through the
proxy. `/server_info` holds API keys in clear: nothing of it is kept but digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from sglang_cached_addon.core import keys

SERVER_KEYS = frozenset(
    {
        # which weights and which tokenizer, and how they are read
        "model_path",
        "served_model_name",
        "revision",
        "load_format",
        "model_impl",
        "json_model_override_args",
        "tokenizer_path",
        "tokenizer_mode",
        "tokenizer_backend",
        "skip_tokenizer_init",
        "mm_process_config",
        # numbers: another of these gives other logits
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "attention_backend",
        "prefill_attention_backend",
        "decode_attention_backend",
        "sampling_backend",
        "enable_deterministic_inference",
        "enable_fp32_lm_head",
        "rl_on_policy_target",
        "tp_size",
        "pp_size",
        # the prompt, and where it ends
        "chat_template",
        "hf_chat_template_name",
        "default_chat_template_kwargs",
        "completion_template",
        "context_length",
        "allow_auto_truncate",
        # what may be sampled
        "sampling_defaults",
        "preferred_sampling_params",
        "grammar_backend",
        "constrained_json_whitespace_pattern",
        "constrained_json_disable_any_whitespace",
        "constrained_json_max_whitespace_cnt",
        "enable_strict_thinking",
        "enable_watermark",
        "watermark_default_enabled",
        "watermark_enforce_all",
        # how the answer is written
        "reasoning_parser",
        "tool_call_parser",
        "enable_cache_report",
        "return_input_ids",
        "return_output_ids",
        "incremental_streaming_output",
        "stream_response_default_include_usage",
        # which program
        "version",
        "frontend",
    }
)
"""The keys of `/server_info` that an answer depends on; the `SERVER_PREFIXES` are more of them.

What is left out, though it looks alike:
- `max_total_num_tokens`, and what follows from it: it bounds very long answers, but differs by
  a few tokens from one start to the next on the same machine, and would empty the cache.
- `random_seed` and `startup_time`, which name the process (`Identity.incarnation`).
- `weight_version`: `/model_info` has the one that counts, this is the one of the start.
- `lora_paths` and the like: adapters come and go, and have epochs of their own.
- keys, hosts, ports, logs, live state (`internal_states`), the command line that has them all.
"""

SERVER_PREFIXES = ("speculative_",)
"""A draft model and its thresholds decide which of the likely tokens are taken."""

_PROCESS_KEYS = ("startup_time", "random_seed")
_UNSTABLE_OF_MODELS = ("created", "permission")
"""Members of an entry of `/v1/models` that differ from one request to the next."""


SGLANG, VLLM = "sglang", "vllm"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers, as far as it matters to what is asked of it and how its answers are read."""

    engine: str = ""
    """Which program it is, where that is known."""
    weight_version: str | None = None
    """As SGLang names its weights, beside each JSON answer."""
    names_spans: bool = True
    """SGLang 0.5.19 and later: it says as well which tokens are of which weights."""
    streams_usage: bool = False
    """A stream ends with its usage, whether that is asked for or not."""


UNKNOWN = Server()

_SPANS = (0, 5, 19)
"""Since this version, SGLang says which tokens of an answer are of which weights."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers at a URL."""

    digest: str
    """32 hexadecimal digits: of all that the server said and an answer may depend on."""
    model: str
    """For people."""
    weight_version: str | None
    """As `/model_info` has it; answers are labelled with theirs."""
    incarnation: str
    """Another one means another process; empty where the server does not tell."""
    engine: str = ""
    """Which program answers: `sglang`, `vllm`, or another one."""
    version: str = ""
    """Of that program, where it is SGLang and tells."""
    streams_usage: bool = False
    """Its streams end with their usage unasked."""

    @property
    def server(self) -> Server:
        """What it comes to for who reads its answers."""
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", self.version)
        is_old = found is not None and tuple(map(int, found.groups())) < _SPANS
        return Server(self.engine, self.weight_version, not is_old, self.streams_usage)


def identify(info: Any, server: Any, models: Any) -> Identity | None:
    """Who answers, by its parsed `/model_info`, `/server_info` and `/v1/models`, each None where
    there is no such document. None if they name no model.

    The models count only where there is no info. A server whose `/server_info` is missing has
    another digest than with it: one that has it but did not answer is not to be identified.
    """
    said: dict[str, Any]
    version, engine = None, SGLANG
    if isinstance(info, dict) and (model := _name(info)):
        said = {"info": info, "server": _chosen(server)}
        version = info.get("weight_version")
    elif entries := _entries(models):
        # Of the first as sent, which is the base model; its adapters follow.
        model = entries[0]["id"]
        said = {"models": sorted(entries, key=_id)}
        engine = _engine(entries)
    else:
        return None
    try:
        return Identity(
            digest=_digest(said),
            model=model,
            weight_version=version if isinstance(version, str) else None,
            incarnation=_incarnation(server),
            engine=engine,
            version=str(_member(server, "version") or ""),
            streams_usage=_member(server, "stream_response_default_include_usage") is True,
        )
    except TypeError:
        # What can be read but not written: nested too deeply, integers beyond 64 bits. No
        # server says that. Not raised: an error's text may tell of the document.
        return None


def _engine(entries: list[dict[str, Any]]) -> str:
    """By whom a server says that its models are owned."""
    owner = entries[0].get("owned_by")
    return owner if owner in (SGLANG, VLLM) else ""


def _member(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _name(info: dict[str, Any]) -> str:
    names = (info.get("served_model_name"), info.get("model_path"))
    return next((name for name in names if isinstance(name, str) and name), "")


def _chosen(server: Any) -> dict[str, Any]:
    if not isinstance(server, dict):
        return {}
    return {
        name: value
        for name, value in server.items()
        if name in SERVER_KEYS or name.startswith(SERVER_PREFIXES)
    }


def _entries(models: Any) -> list[dict[str, Any]]:
    """The lasting members of each model; nothing if one has no id."""
    data = models.get("data") if isinstance(models, dict) else None
    if not isinstance(data, list):
        return []
    if not all(isinstance(entry, dict) and _id(entry) for entry in data):
        return []
    return [{n: v for n, v in entry.items() if n not in _UNSTABLE_OF_MODELS} for entry in data]


def _id(entry: dict[str, Any]) -> str:
    name = entry.get("id")
    return name if isinstance(name, str) else ""


def _incarnation(server: Any) -> str:
    known = server if isinstance(server, dict) else {}
    process = {name: known[name] for name in _PROCESS_KEYS if known.get(name) is not None}
    return _digest(process) if process else ""


def _digest(value: Any) -> str:
    """32 hexadecimal digits of a JSON value, whatever the order of its keys."""
    return _hex(keys.write(value, option=orjson.OPT_SORT_KEYS))


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class Change(StrEnum):
    """What a request may change of what upstream would answer."""

    MODEL = "model"
    ADAPTER = "adapter"


_CHANGES = {
    "begin_weight_update": Change.MODEL,
    "end_weight_update": Change.MODEL,
    "update_weight_version": Change.MODEL,
    # With `reset_tensors` it overwrites the weights.
    "weights_checker": Change.MODEL,
    # The thresholds of speculative decoding, which decide what is taken.
    "set_internal_state": Change.MODEL,
    # What is released is not there until it is loaded anew.
    "release_memory_occupation": Change.MODEL,
    "resume_memory_occupation": Change.MODEL,
}
_CHANGES_BEGIN = {
    # _from_disk, _from_tensor, _from_distributed, _from_ipc, and what will come
    "update_weights": Change.MODEL,
    # _from_tensors
    "load_lora_adapter": Change.ADAPTER,
    "unload_lora_adapter": Change.ADAPTER,
}

# A character a byte is enough: all names of routes are ASCII.
_ESCAPED = re.compile("%([0-9A-Fa-f]{2})")


def change(method: str, path: str) -> Change | None:
    """What a request with this method and target may change; None if nothing.

    Any segment counts, as the server may be mounted under a prefix, and proxies before it resolve
    `.` and `..`, decode once more, or cut what follows a `;`. Any method counts but HEAD and
    OPTIONS: some of these routes take a GET. Over-inclusive, as it may well be: what upstream
    refuses changes nothing, and a change that is overlooked makes answers wrong.
    """
    if method in ("HEAD", "OPTIONS"):
        return None
    # Servers cut a fragment, too, though no client should send one.
    plain = re.split("[?#]", path, maxsplit=1)[0]
    for _ in range(_DECODINGS):
        plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), plain)
    found = [what for segment in re.split(r"[/\\]", plain) if (what := _change(segment.strip()))]
    return Change.MODEL if Change.MODEL in found else next(iter(found), None)


def _change(segment: str) -> Change | None:
    name = segment.partition(";")[0].lower()
    if name in _CHANGES:
        return _CHANGES[name]
    return next((what for begin, what in _CHANGES_BEGIN.items() if name.startswith(begin)), None)


_DECODINGS = 3
"""How often a path may be decoded on its way through proxies."""


def adapter_name(body: bytes) -> str | None:
    """The adapter that a body of a load or unload request names; None if it cannot be read, and
    then it may have been any."""
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    name = value.get("lora_name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name else None


SPAN = 1 << 20
"""So many proxies that share their epochs can each have numbers of their own."""

_COLONS = 8
"""How many colons of `model` may be the one before the adapter; a model may be named by a URL,
`s3://host:9000/model`, which has two."""


def adapters(content: bytes) -> set[str]:
    """The adapters that a call with this canonical content (an item of a `Call`) may select: by
    `lora_path`, or by `model`, as `base:adapter` or (vLLM) as `adapter`. Over-inclusive.

    Raises `ValueError` for what is not JSON, which canonical content is.
    """
    if b'"lora_path"' not in content and b'"model"' not in content:
        return set()
    call = orjson.loads(content)
    if not isinstance(call, dict):
        return set()
    path, model = call.get("lora_path"), call.get("model")
    names = path if isinstance(path, list) else [path]
    if isinstance(model, str):
        parts = model.split(":", _COLONS)
        names = [*names, *(":".join(parts[i:]).strip() for i in range(len(parts)))]
    return {name for name in names if isinstance(name, str) and name}


_MODEL, _ADAPTER = "m:", "a:"


@dataclass(slots=True)
class Epochs:
    """How often each model, and each adapter, was changed through the proxy. A model that comes
    back under a former name is not trusted to be the former one.

    An epoch is a number that was never given before; 0 stands for "never changed".
    """

    last: int = 0
    """The highest number that was given; it only rises."""
    floor: int = 0
    """No model's epoch is lower."""
    models: dict[str, int] = field(default_factory=dict)
    """`Identity.digest` to its epoch, where it is above the floor."""
    adapters: dict[str, int] = field(default_factory=dict)
    """Name of an adapter to its epoch, where it was ever changed."""
    salt: int = 0
    """From 1 to `SPAN` - 1 where others give epochs, too, and would give the same ones."""

    def _next(self, last: int) -> int:
        return (last // SPAN + 1) * SPAN + self.salt if self.salt else last + 1

    def of(self, digest: str) -> int:
        """A model's epoch."""
        return max(self.models.get(digest, 0), self.floor)

    def raise_model(self, digest: str | None) -> None:
        """A model is changed, or may be; None: it is not known which."""
        self.last = self._next(self.last)
        if digest is None:
            self.floor = self.last
            self.models.clear()
        else:
            self.models[digest] = self.last

    def raise_adapter(self, name: str) -> None:
        """An adapter is loaded or unloaded, or may be. Where its name could not be read, raise
        the model: that makes all calls new, with and without an adapter."""
        self.last = self._next(self.last)
        self.adapters[name] = self.last

    def restarted(self, after: Identity) -> None:
        """Another process answers, which has loaded its weights anew.

        A model that was never changed is what it was, and keeps its answers. One that was is
        neither what the last process made of it nor surely what it was at first. So with the
        adapters, which the new process has from its command line, if at all.
        """
        is_changed = self.of(after.digest) > 0
        if not is_changed and not self.adapters:
            return
        self.last = self._next(self.last)
        if is_changed:
            self.models[after.digest] = self.last
        self.adapters = dict.fromkeys(self.adapters, self.last)

    def as_numbers(self) -> dict[str, int]:
        """All that was ever raised, each number under a name of its own."""
        numbers = {"last": self.last, "floor": self.floor}
        numbers |= {f"{_MODEL}{digest}": number for digest, number in self.models.items()}
        numbers |= {f"{_ADAPTER}{name}": number for name, number in self.adapters.items()}
        return {name: number for name, number in numbers.items() if number}

    def merge(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
        """Takes what others have made of the numbers that were `known`, unless one has changed here
        as well: then the higher one. Whether anything is another one now."""
        mine = self.as_numbers()
        merged = dict(theirs)
        for name in mine | dict(known):
            number = mine.get(name, 0)
            if number != known.get(name, 0):
                merged[name] = max(number, theirs.get(name, 0))
        merged["last"] = max(mine.get("last", 0), *merged.values(), 0)
        if {name: number for name, number in merged.items() if number} == mine:
            return False
        self.last, self.floor = merged["last"], merged.get("floor", 0)
        self.models, self.adapters = (
            {name[2:]: n for name, n in merged.items() if name.startswith(kind) and n}
            for kind in (_MODEL, _ADAPTER)
        )
        return True

    def fingerprint(self, identity: Identity) -> str:
        """32 hexadecimal digits that name a model as it is now."""
        return _hex(f"{identity.digest} {self.of(identity.digest)}".encode())

    def adapter_epochs(self, names: Iterable[str]) -> str:
        """A text for these adapters as they are now; empty if none was ever changed."""
        pairs = sorted((name, self.adapters[name]) for name in set(names) if name in self.adapters)
        return orjson.dumps(pairs).decode() if pairs else ""

    @property
    def adapters_token(self) -> str:
        """A text for all adapters as they are now; empty if none was ever changed."""
        return self.adapter_epochs(self.adapters)

    def as_json(self) -> dict[str, Any]:
        """To be kept; `from_json` reads it."""
        return {
            "last": self.last,
            "floor": self.floor,
            "models": dict(self.models),
            "adapters": dict(self.adapters),
        }

    @classmethod
    def from_json(cls, value: Any) -> Epochs:
        """What `as_json` wrote. Raises `ValueError` if it is anything else."""
        if not isinstance(value, dict):
            raise ValueError("epochs: not an object")
        last = _epoch(value, "last")
        floor = _epoch(value, "floor")
        models, adapters = _epochs(value, "models"), _epochs(value, "adapters")
        if max(floor, *models.values(), *adapters.values(), 0) > last:
            # It would be given a second time.
            raise ValueError("epochs: a number above the last that was given")
        return cls(last, floor, models, adapters)


def _epoch(members: dict[str, Any], name: str) -> int:
    number = members.get(name)
    if type(number) is not int or number < 0:
        raise ValueError(f"epochs: {name!r} is not a number of 0 or more")
    return number


def _epochs(members: dict[str, Any], name: str) -> dict[str, int]:
    numbers = members.get(name)
    if not isinstance(numbers, dict):
        raise ValueError(f"epochs: {name!r} is not an object")
    return {key: _epoch(numbers, key) for key in numbers}
