"""One block of a message as it comes."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.messages_block import Block
from tests.tables import each

TEXT = {"type": "text", "text": ""}
TOOL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
SAID = b'{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"a"}}'


def piece(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


def test_whole() -> None:
    """A block is whole when it has ended, and its deltas are kept as they came."""
    block = Block(TOOL)
    block.add(piece('{"a":'))
    block.add(piece("1}"))
    with pytest.raises(Refused) as caught:
        block.whole()
    assert caught.value.reason is Reason.UNFINISHED
    block.is_open = False
    assert block.whole() == {**TOOL, "input": {"a": 1}}
    assert block.steps == ['{"a":', "1}"]
    with pytest.raises(Refused):
        block.add(piece("1"))


@each("said", ["{", "[]", "3", "null", '"a"', "{} {}"])
def test_odd_input(said: str) -> None:
    """What JSON could not have as the input of a tool is not taken for one."""
    block = Block(TOOL)
    block.add(piece(said))
    block.is_open = False
    with pytest.raises(Refused) as caught:
        block.whole()
    assert caught.value.reason is Reason.UNREADABLE


def test_frame() -> None:
    """What is written as SGLang writes a text may be followed by another one with its frame."""
    block = Block(TEXT)
    block.add({"type": "text_delta", "text": "a"})
    frame = block.frame(SAID, 2)
    assert frame and frame.text(SAID.replace(b'"a"', b'"bc"')) == "bc"
    for said, index in ((SAID, 1), (b" " + SAID, 2), (SAID.replace(b":", b": "), 2)):
        assert block.frame(said, index) is None
    assert Block(TOOL).frame(SAID, 2) is None
