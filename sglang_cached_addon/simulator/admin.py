"""The routes that generate nothing: control, /tokenize, and what the server says of itself."""

from __future__ import annotations

import time
from dataclasses import replace

from sglang_cached_addon.simulator.handler import Handler
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json
from sglang_cached_addon.simulator.refusals import missing
from sglang_cached_addon.simulator.words import token_ids

_EMBEDDING: Json = {
    **dict.fromkeys(("family", "task", "execution", "attention"), "none"),
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
}


async def nothing(handler: Handler) -> None:
    handler.reply(b"")


async def root(handler: Handler) -> None:
    handler.reply("simulated SGLang is running")


async def abort(handler: Handler) -> None:
    body = handler.document()
    handler.engine.abort(str(body.get("rid") or ""), bool(body.get("abort_all")))
    handler.reply(b"")


async def flush_cache(handler: Handler) -> None:
    text = "Cache flushed.\nPlease check backend logs for more details. (When there are running"
    text += " or waiting requests, the operation will not be performed.)\n"
    handler.reply(text.encode(), 400 if handler.engine.running else 200)


async def update_weights(handler: Handler) -> None:
    body, old = handler.document(), handler.engine.profile
    if not isinstance(body.get("model_path"), str):
        raise missing(handler.request.path, body, "model_path")
    version = body.get("weight_version") or old.weight_version
    handler.engine.profile = replace(old, model=body["model_path"], weight_version=version)
    text = "Succeeded to update model weights."
    handler.reply({"success": True, "message": text, "num_paused_requests": 0})


async def tokenize(handler: Handler) -> None:
    body = handler.document()
    if not isinstance(body.get("prompt"), str):
        raise missing(handler.request.path, body, "prompt")
    ids = token_ids(body["prompt"])
    handler.reply({"tokens": ids, "count": len(ids), "max_model_len": CONTEXT_LENGTH})


async def models(handler: Handler) -> None:
    model = handler.engine.profile.model
    card = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "sglang"}
    card |= {"root": model, "parent": None, "max_model_len": CONTEXT_LENGTH}
    handler.reply({"object": "list", "data": [card]})


async def model_info(handler: Handler) -> None:
    profile = handler.engine.profile
    handler.reply(
        {
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
            "embedding": _EMBEDDING,
        }
    )


async def server_info(handler: Handler) -> None:
    """A few of SGLang's keys, in its order; the API keys are shown in clear, as there."""
    profile = handler.engine.profile
    handler.reply(
        {
            "model_path": profile.model,
            "random_seed": profile.seed,
            "api_key": profile.api_key or None,
            "admin_api_key": profile.admin_api_key or None,
            "served_model_name": profile.model,
            "weight_version": profile.weight_version,
            "incremental_streaming_output": profile.incremental,
            "status": "ready",
            "startup_time": handler.engine.startup_time,
            "version": "0.5.23",
        }
    )
