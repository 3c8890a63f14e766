"""Streams of `/v1/messages`: samples to events.

`messages_stream` has the form of a sample's `deltas`. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import orjson

from sglang_cached_addon.core.call import Recorded, Script
from sglang_cached_addon.dialects import judging, messages_answer
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.messages_answer import TEXTS
from sglang_cached_addon.dialects.messages_block import DELTAS
from sglang_cached_addon.wire import sse


def script(sample: Recorded) -> Script:
    """The events of a sample."""
    answer: Json = orjson.loads(sample.answer)
    blocks: list[Any] = orjson.loads(sample.deltas) if sample.deltas else _whole(answer)
    told: Json = blocks.pop() if blocks and isinstance(blocks[-1], dict) else {}
    message = told.get("begins") or messages_answer.begins(answer)
    said = [_event({"type": "message_start", "message": message})]
    said += map(_event, _of_blocks(answer["content"], blocks, told))
    end = _event(told.get("ends") or messages_answer.ends(answer))
    return Script((said,), [end], _event({"type": "message_stop"}))


def _event(value: Json) -> bytes:
    return sse.event(judging.dump(value), value["type"].encode())


def _whole(answer: Json) -> list[list[Any]]:
    """The blocks of a sample that did not come as a stream: each has one delta. A text that is
    empty is there only because there has to be a block."""
    blocks = []
    for block in answer["content"]:
        kind = block["type"]
        if kind in TEXTS:
            text = block[TEXTS[kind]]
            signature = [None] if "signature" in block else []
            if text or signature:
                blocks.append([kind, len(text), *signature])
        else:
            is_given = kind == "tool_use" and "input" in block
            blocks.append([kind, *([judging.dump(block["input"]).decode()] if is_given else [])])
    return blocks


def _of_blocks(content: list[Json], blocks: list[Any], told: Json) -> Iterator[Json]:
    """The events of all blocks; `told` is what does not follow from these."""
    texts = {
        kind: StringIO("".join(block[name] for block in content if block["type"] == kind))
        for kind, name in TEXTS.items()
    }
    others = (block for block in content if block["type"] not in TEXTS)
    signatures = (block["signature"] for block in content if "signature" in block)
    for index, (kind, *steps) in enumerate(blocks):
        whole = None if kind in TEXTS else next(others)
        first = told.get("begun", {}).get(str(index)) or messages_answer.begun(kind, whole)
        if kind in TEXTS:
            texts[kind].read(len(first[TEXTS[kind]]))
        yield {"type": "content_block_start", "index": index, "content_block": first}
        for step in steps:
            delta: Json
            if step is None:
                delta = {"type": "signature_delta", "signature": next(signatures)}
            elif isinstance(step, int):
                name, member = DELTAS[kind]
                delta = {"type": name, member: texts[kind].read(step)}
            else:
                delta = {"type": "input_json_delta", "partial_json": step}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
