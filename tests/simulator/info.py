"""What the server says of itself, as much as tests look at."""

from __future__ import annotations

from sglang_cached_addon.simulator import info as small
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH
from tests.simulator.handler import Handler


async def models(handler: Handler) -> None:
    """The model, then the loaded adapters."""
    loaded = handler.engine.loaded
    model = loaded.profile.served
    cards = [small.card(model, model, None, CONTEXT_LENGTH)]
    cards += [small.card(name, path, model, None) for name, path in loaded.adapters.paths.items()]
    handler.reply({"object": "list", "data": cards})


async def model_info(handler: Handler) -> None:
    await handler.rest(handler.engine.profile.info_delay)
    loaded = handler.engine.loaded
    told = {"tokenizer_path": loaded.launched.model, "model_type": loaded.profile.model_type}
    handler.reply({**small.about_model(loaded.profile), **told})


async def server_info(handler: Handler) -> None:
    """More of SGLang's keys; the API keys are shown in clear, as there.

    It is told what the server was started with: an update of the weights is not seen here.
    """
    engine = handler.engine
    await handler.rest(engine.profile.info_delay)
    profile = engine.loaded.launched
    adapters = [given.partition("=") for given in profile.lora_paths]
    handler.reply(
        {
            "model_path": profile.model,
            "tokenizer_path": profile.model,
            "load_format": "auto",
            "context_length": None,
            "revision": profile.revision or None,
            "dtype": profile.dtype,
            "quantization": profile.quantization or None,
            "kv_cache_dtype": "auto",
            "random_seed": engine.random_seed,
            "api_key": profile.api_key or None,
            "admin_api_key": profile.admin_api_key or None,
            "served_model_name": profile.served,
            "weight_version": profile.weight_version,
            "chat_template": profile.chat_template or None,
            "enable_lora": True,
            "lora_paths": [
                {"lora_name": name, "lora_path": path or name, "pinned": False}
                for name, _, path in adapters
            ],
            "incremental_streaming_output": False,
            "stream_response_default_include_usage": profile.stream_response_default_include_usage,
            "enable_response_store": profile.enable_response_store,
            "status": "ready",
            "max_total_num_tokens": 65536,
            "max_req_input_len": CONTEXT_LENGTH - 6,
            "startup_time": engine.startup_time,
            "internal_states": [{"last_gen_throughput": float(engine.tokens)}],
            "version": "0.5.23",
            "frontend": "python",
        }
    )
