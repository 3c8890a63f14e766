"""Who answers: what a server says of itself, as a name for its model.

Pure: takes parsed documents, gives names. A name (`Identity.digest`)
changes with all that a server tells of its model and settings. What it does not tell, weights
that change under an equal name, is counted elsewhere (`epochs`). `/server_info` holds API keys in
clear: nothing of it is kept but digests.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import orjson

from sglang_cached_addon.core import families, keys
from sglang_cached_addon.core.families import Reuse

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

SERVER_FLAGS = frozenset({"enable_mis"})
"""Keys that count where they are true, so that other servers keep the names that they had before
these were known."""

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
    """Which program it is: `sglang`, `vllm`, or empty where that is not known."""
    weight_version: str | None = None
    """The name that SGLang gives its weights, and puts into each JSON answer."""
    names_spans: bool = True
    """It also says which tokens are of which weights, as SGLang does since 0.5.19."""
    streams_usage: bool = False
    """Its streams end with their usage, whether that is asked for or not."""
    reuse: Reuse = families.NONE
    """What its greedy answers can be used for."""
    fuses_scores: bool = False
    """It puts all items of a call for scores into one sequence."""


UNKNOWN = Server()

_SPANS = (0, 5, 19)
"""The first version of SGLang that says which tokens are of which weights."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers at a URL."""

    digest: str
    """32 hexadecimal digits of all that the server says and an answer may depend on."""
    model: str
    """The name of the model, for people."""
    weight_version: str | None
    """The name of its weights in `/model_info`; each answer says of which weights it is."""
    incarnation: str
    """A text that another process would not have. Empty where the server does not tell."""
    engine: str = ""
    """As `Server.engine`."""
    version: str = ""
    """The version of SGLang, where it is that and tells."""
    streams_usage: bool = False
    """As `Server.streams_usage`."""
    greedy: str = ""
    """What it says of its greedy answers, as `families.reuse` reads it."""
    fuses_scores: bool = False
    """As `Server.fuses_scores`."""

    @property
    def server(self) -> Server:
        """What matters of it to requests and answers."""
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", self.version)
        is_old = found is not None and tuple(map(int, found.groups())) < _SPANS
        reuse = families.reuse(self.greedy, self.version)
        flags = not is_old, self.streams_usage
        return Server(self.engine, self.weight_version, *flags, reuse, self.fuses_scores)


def identify(info: Any, server: Any, models: Any) -> Identity | None:
    """Who answers, from the parsed `/model_info`, `/server_info` and `/v1/models`, each None where
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
        owner = entries[0].get("owned_by")
        engine = owner if owner in (SGLANG, VLLM) else ""
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
            greedy=families.told(server, info),
            fuses_scores=_member(server, "enable_mis") is True,
        )
    except TypeError:
        # What can be read but not written: nested too deeply, integers beyond 64 bits. No
        # server says that. Not raised: an error's text may tell of the document.
        return None


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
        if name in SERVER_KEYS
        or name.startswith(SERVER_PREFIXES)
        or (name in SERVER_FLAGS and value is True)
    }


def _entries(models: Any) -> list[dict[str, Any]]:
    """The members of each model that stay the same. Empty if a model has no id."""
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
    said = ((name, _member(server, name)) for name in _PROCESS_KEYS)
    process = {name: value for name, value in said if value is not None}
    return _digest(process) if process else ""


def _digest(value: Any) -> str:
    """32 hexadecimal digits of a JSON value, whatever the order of its keys."""
    return hex_digest(keys.write(value, option=orjson.OPT_SORT_KEYS))


def hex_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
