"""The routes that generate nothing: what the server says of itself."""

from __future__ import annotations

import time

from sglang_cached_addon.simulator.handler import Handler
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json, Profile


async def nothing(handler: Handler) -> None:
    handler.reply(b"")


async def root(handler: Handler) -> None:
    handler.reply("simulated SGLang is running")


async def models(handler: Handler) -> None:
    model = handler.engine.profile.served
    handler.reply({"object": "list", "data": [card(model, model, None, CONTEXT_LENGTH)]})


def card(name: str, root: str, parent: str | None, length: int | None) -> Json:
    """What /v1/models says of a model, or of an adapter of one."""
    about: Json = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "sglang"}
    return {**about, "root": root, "parent": parent, "max_model_len": length}


async def model_info(handler: Handler) -> None:
    handler.reply(about_model(handler.engine.profile))


def about_model(profile: Profile) -> Json:
    return {
        "model_path": profile.model,
        "served_model_name": profile.served,
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
    }


async def server_info(handler: Handler) -> None:
    """A few of SGLang's keys."""
    engine = handler.engine
    handler.reply(
        {
            "model_path": engine.profile.model,
            "tokenizer_path": engine.profile.model,
            "served_model_name": engine.profile.served,
            "random_seed": engine.random_seed,
            "weight_version": engine.profile.weight_version,
            "status": "ready",
            "max_req_input_len": CONTEXT_LENGTH - 6,
            "startup_time": engine.startup_time,
            "version": "0.5.23",
        }
    )
