"""Records what a server that is not SGLang answers: `python -m tests.servers.record NAME URL WHAT`.

The server is one that was started for this on the same machine, with any small model; `WHAT` says
which program and version it is. The file `NAME.json` beside this module has each request with its
answer, and `stand_in` speaks as they do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests

ABOUT = ("/v1/models", "/version", "/props", "/info", "/api/tags", "/api/version", "/model_info",
         "/get_model_info", "/server_info", "/get_server_info", "/workers")  # fmt: skip
"""Routes that may say who answers."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SAMPLED: dict[str, Any] = {"max_tokens": 4, "temperature": 1, "seed": 7}
_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
_CONTINUOUS = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def calls(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The calls that are made, by name."""
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], **_SAMPLED}
    text = {"model": model, "prompt": "hi", **_SAMPLED}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, path, body in (("chat", CHAT, chat), ("completions", COMPLETIONS, text)):
        found |= {
            f"{name}": (path, body),
            f"{name}-next-seed": (path, {**body, "seed": 8}),
            f"{name}-n2": (path, {**body, "n": 2}),
            f"{name}-stream": (path, {**body, "stream": True}),
            f"{name}-stream-usage": (path, {**body, **_USAGE}),
            f"{name}-stream-n2": (path, {**body, "n": 2, "stream": True}),
            f"{name}-stream-n2-usage": (path, {**body, "n": 2, **_USAGE}),
            f"{name}-n2-ids": (path, {**body, "n": 2, "return_token_ids": True}),
            f"{name}-stream-n2-continuous": (path, {**body, "n": 2, **_CONTINUOUS}),
            f"{name}-bad": (path, {**body, "max_tokens": "many"}),
        }
    return found | {
        "chat-logprobs": (CHAT, {**chat, "logprobs": True, "top_logprobs": 1}),
        "chat-stream-logprobs": (CHAT, {**chat, "logprobs": True, "stream": True}),
        "chat-tools": (CHAT, {**chat, "tools": [tool]}),
        "chat-other-name": (CHAT, {**chat, "model": "another"}),
        "completions-list": (COMPLETIONS, {**text, "prompt": ["hi", "ho"]}),
        "completions-list-n2": (COMPLETIONS, {**text, "prompt": ["hi", "ho"], "n": 2}),
        "completions-logprobs": (COMPLETIONS, {**text, "logprobs": 1}),
        "messages": ("/v1/messages", {k: v for k, v in chat.items() if k != "seed"}),
        "tokenize": ("/tokenize", {"model": model, "prompt": "hi"}),
        "detokenize": ("/detokenize", {"model": model, "tokens": [70, 71]}),
    }


def exchange(url: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """A request with its answer."""
    answer = requests.request(method, url + path, json=body, timeout=60)
    asked = {"method": method, "path": path, "body": body}
    said = {"status": answer.status_code, "type": answer.headers.get("content-type", ""),
            "date": answer.headers.get("date"), "body": answer.content.decode()}  # fmt: skip
    return {"request": asked, "response": said}


def main(name: str, url: str, what: str) -> None:
    about = {path: exchange(url, "GET", path) for path in ABOUT}
    listed = json.loads(about["/v1/models"]["response"]["body"])
    model = listed["data"][0]["id"]
    made = {name: exchange(url, "POST", *call) for name, call in calls(model).items()}
    text = json.dumps({"what": what, **about, **made}, indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
