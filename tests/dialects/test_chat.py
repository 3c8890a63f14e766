"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.chat import DIALECT
from tests.dialects.bodies import refusal
from tests.tables import each

PICTURE = "data:image/png;base64,AAAA"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}


def saying(content: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": content}])


@each(
    ("body", "n", "rids"),
    [
        (chat(), 1, ()),
        (chat(n=4), 4, ()),
        (chat(rid="r"), 1, ("r",)),
        (chat(rid="r", n=2), 2, ()),
        (saying([{"type": "image_url", "image_url": {"url": PICTURE}}]), 1, ()),
        (saying([{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]), 1, ()),
        (chat(messages=["upstream will refuse this"]), 1, ()),
    ],
)
def test_read(body: dict[str, Any], n: int, rids: tuple[str, ...]) -> None:
    """A body is read as the client means it."""
    call = DIALECT.read(body)
    assert (call.n, len(call.items), call.batched, call.rids) == (n, 1, False, rids)
    assert call.body == body


def part(name: str, url: Any) -> dict[str, Any]:
    return saying([{"type": "text", "text": "a"}, {"type": name, name: url}])


@each(
    ("body", "reason"),
    [
        ({"model": "m"}, Reason.MALFORMED),
        *((chat(messages=m), Reason.MALFORMED) for m in (None, [], "a", {"role": "user"})),
        (chat(n=2, return_routed_experts=True), Reason.INSEPARABLE),
        (chat(best_of=2), Reason.BEST_OF),
        (chat(modalities=["text", "audio"], audio={"voice": "x"}), Reason.STATE),
        *((part(*named), Reason.MEDIA) for named in (
            ("image_url", {"url": "http://example.com/a.png"}),
            ("image_url", "http://example.com/a.png"),
            ("video_url", {"url": "file:///tmp/a.mp4"}),
            ("audio_url", {"url": "/tmp/a.wav"}),
            ("image", "a.png"), ("video", "a.mp4"), ("audio", ["a.wav"]),
            ("file", {"file_id": "file-1"}),
        )),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, body) is reason


@each("place", [0, 1, 2])
def test_media_in_any_message(place: int) -> None:
    """Media by URL or path is refused."""
    messages = [{"role": "user", "content": "a"} for _ in range(3)]
    messages[place] = part("image_url", {"url": "http://example.com/a.png"})["messages"][0]
    assert refusal(DIALECT, chat(messages=messages)) is Reason.MEDIA


def answer(*contents: str, finish: str = "stop") -> dict[str, Any]:
    """An answer with three tokens for each content."""
    return {
        "id": "up",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": k,
                "message": {
                    "role": "assistant",
                    "content": text,
                    "reasoning_content": f"why {text}",
                    "tool_calls": [{"id": f"call_{text}", "index": 0}],
                },
                "logprobs": {"content": [{"token": text}] * 3},
                "finish_reason": finish,
                "novelty": text,
            }
            for k, text in enumerate(contents)
        ],
        "usage": {
            "prompt_tokens": 5,
            "total_tokens": 5 + 3 * len(contents),
            "completion_tokens": 3 * len(contents),
        },
        "sglext": {"output_ids": [[ord(text)] for text in contents]},
    }
