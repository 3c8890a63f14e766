"""What servers that are not SGLang say of themselves, beside their list of models.

Pure: takes parsed answers, gives what of them stays the same as long as the model does. A list of
models (`/v1/models`) names them, and little more; vLLM, llama.cpp, TGI and Ollama have routes of
their own for the rest, and gateways one for the workers behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from sglang_cached_addon.core import keys

ROUTES: Mapping[str, tuple[str, ...]] = {
    "/v1/models": ("/version", "/props", "/info", "/api/tags"),
    "/get_model_info": ("/workers",),
}
"""By the route on which a server has named its model: those that may tell more."""

SGLANG, VLLM, LLAMA_CPP, TGI, OLLAMA = "sglang", "vllm", "llama.cpp", "tgi", "ollama"
"""The names of programs."""

_OWNERS: Mapping[Any, str] = {"sglang": SGLANG, "vllm": VLLM, "llamacpp": LLAMA_CPP}
"""Programs by what they say of who owns their models."""

WITHOUT_N = frozenset((TGI, OLLAMA))
"""They give one choice, whatever `n` says."""

MOMENT_SECONDS = 60.0
"""A time that is so near to that of the answer which has it is taken for the time of the answer,
and says nothing of the model."""

_STABLE = {
    # vLLM
    "/version": ("version",),
    # llama.cpp; the settings are those that hold where a call says nothing
    "/props": (
        "default_generation_settings", "model_path", "model_alias", "model_ftype", "build_info",
        "chat_template", "chat_template_tool_use", "bos_token", "eos_token", "modalities",
    ),
    # TGI
    "/info": (
        "model_id", "model_sha", "model_dtype", "model_device_type", "version", "sha",
        "docker_label", "max_input_tokens", "max_input_length", "max_total_tokens",
    ),
}  # fmt: skip
"""The members of each answer that an answer of the model may depend on; others are live state, or
differ from process to process."""

_LIVE = ("created", "permission")
"""Members of an entry of `/v1/models` that differ from one request to the next, with most."""


def entries(models: Any, moment: float | None) -> list[dict[str, Any]]:
    """The members of each model in a list of models that stay the same. Empty if a model has no id.
    `moment` is the Unix time of the answer, by its server's clock. Where it is known, a model's
    `created` is one of them, unless it is that time: Ollama's is when the model was fetched."""
    data = models.get("data") if isinstance(models, dict) else None
    if not isinstance(data, list):
        return []
    if not all(isinstance(entry, dict) and model_id(entry) for entry in data):
        return []
    return [_entry(entry, moment) for entry in data]


def _entry(entry: dict[str, Any], moment: float | None) -> dict[str, Any]:
    stable = {name: value for name, value in entry.items() if name not in _LIVE}
    created: Any = entry.get("created")
    if moment is None or type(created) not in (int, float):
        return stable
    is_live = abs(created - moment) < MOMENT_SECONDS
    return stable if is_live else {**stable, "created": created}


def model_id(entry: dict[str, Any]) -> str:
    """The name of a model in a list; empty where it has none."""
    name = entry.get("id")
    return name if isinstance(name, str) else ""


def told(more: Mapping[str, Any]) -> dict[str, Any]:
    """What stays the same of what the further routes have answered, by route."""
    found: dict[str, Any] = {}
    for path, names in _STABLE.items():
        document = more.get(path)
        if isinstance(document, dict):
            found[path] = {name: document[name] for name in names if name in document}
    if tags := _objects(more.get("/api/tags"), "models"):
        # Of Ollama: the digest of each model's files.
        found["/api/tags"] = _sorted({n: tag.get(n) for n in ("name", "digest")} for tag in tags)
    if kinds := _workers(more):
        found["/workers"] = kinds
    return {path: value for path, value in found.items() if value}


def _workers(more: Mapping[str, Any]) -> list[Any]:
    """What a gateway knows of the models of its workers: each kind once, however many have it."""
    kinds = [
        {name: worker.get(name) for name in ("model_id", "worker_type", "metadata")}
        for worker in _objects(more.get("/workers"), "workers")
    ]
    return list({_written(kind): kind for kind in _sorted(kinds)}.values())


def workers(more: Mapping[str, Any]) -> int:
    """How many workers a gateway has."""
    return len(_objects(more.get("/workers"), "workers"))


def is_ambiguous(more: Mapping[str, Any]) -> bool:
    """Whether a gateway has workers that go by one name, and are not of one model: any of them may
    answer, and nobody can tell which one has."""
    names = [(str(kind["model_id"]), str(kind["worker_type"])) for kind in _workers(more)]
    return len(set(names)) < len(names)


def engine(entry: dict[str, Any], more: Mapping[str, Any]) -> str:
    """Which program has such an entry in its list of models; empty where that is not known."""
    owner, info = entry.get("owned_by"), more.get("/info")
    if owner in _OWNERS:
        return _OWNERS[owner]
    if isinstance(info, dict) and {"model_id", "version"} <= info.keys():
        return TGI
    tags = _objects(more.get("/api/tags"), "models")
    return OLLAMA if any(tag.get("digest") for tag in tags) else ""


def process(more: Mapping[str, Any]) -> str:
    """A text that another process would not have; empty where the server does not tell. llama.cpp
    draws one at its start."""
    props = more.get("/props")
    marker = props.get("media_marker") if isinstance(props, dict) else None
    return marker if isinstance(marker, str) else ""


def _objects(document: Any, name: str) -> list[dict[str, Any]]:
    """The objects in a list that is a member of a document."""
    listed = document.get(name) if isinstance(document, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _sorted(values: Iterable[Any]) -> list[Any]:
    """JSON values in an order that depends on nothing but them."""
    return sorted(values, key=_written)


def _written(value: Any) -> bytes:
    """A JSON value as bytes that are equal whatever the order of its members: a gateway has them in
    any."""
    return keys.write(value, option=orjson.OPT_SORT_KEYS)
