"""The routes that change what the server does: weights, adapters, pauses, aborts, the KV cache.

With an admin key all of them, and nothing else, ask for it. An update of the weights does not
wait for running samples, as in SGLang while generation is paused; those say what they would have
said. Tensors are taken without /begin_weight_update, too, as older servers do.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from sglang_cached_addon.simulator.handler import Endpoint, Routes
from sglang_cached_addon.simulator.profile import Json
from tests.simulator.checks import missing
from tests.simulator.handler import Handler
from tests.simulator.lora import TENSORS, Adapter


def _given(handler: Handler, *names: str) -> Json:
    """The body, which has these fields."""
    body = handler.document()
    absent = [name for name in names if name not in body]
    if absent:
        raise missing(*absent)
    return body


def _told(handler: Handler, message: str, **more: Any) -> None:
    handler.reply({"success": True, "message": message, **more})


async def abort(handler: Handler) -> None:
    body = handler.document()
    handler.engine.abort(str(body.get("rid") or ""), bool(body.get("abort_all")))
    handler.reply(b"")


async def flush_cache(handler: Handler) -> None:
    text = "Cache flushed.\nPlease check backend logs for more details. (When there are running"
    text += " or waiting requests, the operation will not be performed.)\n"
    handler.reply(text.encode(), 400 if handler.engine.running else 200)


async def pause(handler: Handler) -> None:
    handler.engine.pause(handler.document().get("mode", "abort"))
    handler.reply({"message": "Generation paused successfully.", "status": "ok"})


async def proceed(handler: Handler) -> None:
    handler.document()
    handler.engine.proceed()
    handler.reply({"message": "Generation continued successfully.", "status": "ok"})


def _update(handler: Handler, weights: str, message: str, body: Json, **changes: Any) -> str:
    """Change the weights, and what the body says besides; the message that tells of it."""
    if body.get("abort_all_requests"):
        handler.engine.abort("", True)
    version = body.get("weight_version")
    if version is not None:
        changes["weight_version"] = version
        message += f" Weight version updated to {version}."
    handler.engine.update(weights, **changes)
    return message


async def update_from_disk(handler: Handler) -> None:
    """Served are the weights at a path from now on, by its name."""
    body = handler.document()
    path = body.get("model_path")
    if not isinstance(path, str):
        raise missing("model_path")
    text = "Succeeded to update model weights."
    message = _update(handler, "", text, body, model=path, served_model_name="")
    _told(handler, message, num_paused_requests=0)


def _updates(kind: str, message: str, *names: str) -> Endpoint:
    """An update by weights that came in a request: nothing shows it but the label, if given."""

    async def update(handler: Handler) -> None:
        _told(handler, _update(handler, kind, message, _given(handler, *names)))

    return update


async def succeed(handler: Handler) -> None:
    """The begin and the end of an update, of which nothing is seen."""
    handler.document()
    _told(handler, "Success")


async def update_version(handler: Handler) -> None:
    """Only the label changes."""
    body = _given(handler, "new_version")
    version = body["new_version"]
    if body.get("abort_all_requests", True):
        handler.engine.abort("", True)
    handler.engine.update(None, weight_version=version)
    _told(handler, f"Weight version updated to {version}", new_version=version)


async def set_state(handler: Handler) -> None:
    _given(handler, "server_args")
    handler.reply([True])


async def release_memory(handler: Handler) -> None:
    """The weights are gone, if they are among the tags."""
    tags = handler.document().get("tags")
    if not tags or "weights" in tags:
        handler.engine.update("released")
    handler.reply(None)


async def resume_memory(handler: Handler) -> None:
    """Room for the weights is there again; what is in it is not what was."""
    handler.document()
    handler.reply(None)


async def check_weights(handler: Handler) -> None:
    """All that it may do here is to make the weights others."""
    if _given(handler, "action")["action"] == "reset_tensors":
        handler.engine.update("random")
    _told(handler, "Success.")


def _adapters(handler: Handler) -> None:
    """Tell which adapters are loaded."""
    told = {"success": True, "error_message": "", "loaded_adapters": handler.engine.adapters.paths}
    handler.reply({"rid": None, "http_worker_ipc": None, **told})


def _load(handler: Handler, name: str, adapter: Adapter) -> None:
    handler.engine.adapters.load(name, adapter)
    _adapters(handler)


async def load_adapter(handler: Handler) -> None:
    body = _given(handler, "lora_name", "lora_path")
    _load(handler, str(body["lora_name"]), Adapter(str(body["lora_path"])))


async def load_adapter_from_tensors(handler: Handler) -> None:
    """What the name stands for is what was sent, and no route shows it."""
    body = _given(handler, "lora_name", "config_dict", "serialized_named_tensors")
    content = orjson.dumps([body["config_dict"], body["serialized_named_tensors"]])
    adapter = Adapter(TENSORS, hashlib.sha256(content).hexdigest())
    _load(handler, str(body["lora_name"]), adapter)


async def unload_adapter(handler: Handler) -> None:
    handler.engine.adapters.unload(str(_given(handler, "lora_name")["lora_name"]))
    _adapters(handler)


_POST = ("POST",)
_BOTH = ("GET", "POST")
_DISTRIBUTED = ("distributed", "Succeeded to update parameter online.", "names", "dtypes", "shapes")
_IPC = ("ipc", "Succeeded to update model weights.", "zmq_handles")

ROUTES: Routes = {
    "/abort_request": (_POST, abort),
    "/flush_cache": (_BOTH, flush_cache),
    "/pause_generation": (_POST, pause),
    "/continue_generation": (_POST, proceed),
    "/update_weights_from_disk": (_POST, update_from_disk),
    "/update_weights_from_tensor": (
        _POST,
        _updates("tensor", "Success", "serialized_named_tensors"),
    ),
    "/update_weights_from_distributed": (_POST, _updates(*_DISTRIBUTED)),
    "/update_weights_from_ipc": (_POST, _updates(*_IPC)),
    "/begin_weight_update": (_POST, succeed),
    "/end_weight_update": (_POST, succeed),
    "/update_weight_version": (_POST, update_version),
    "/set_internal_state": (("POST", "PUT"), set_state),
    "/release_memory_occupation": (_BOTH, release_memory),
    "/resume_memory_occupation": (_BOTH, resume_memory),
    "/weights_checker": (_BOTH, check_weights),
    "/load_lora_adapter": (_POST, load_adapter),
    "/load_lora_adapter_from_tensors": (_POST, load_adapter_from_tensors),
    "/unload_lora_adapter": (_POST, unload_adapter),
}
