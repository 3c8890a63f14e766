"""Answers of `/v1/messages`."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.messages_answer import split
from tests.tables import each

TEXT = {"type": "text", "text": "a"}
GOOD: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "content": [TEXT], "model": "m",
    "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip


@each(
    ("answer", "reason"),
    [
        (None, Reason.UNREADABLE), ([GOOD], Reason.UNREADABLE), ({}, Reason.UNREADABLE),
        ({"type": "error", "error": {"message": "no"}}, Reason.ERROR),
        ({**GOOD, "error": {"message": "no"}}, Reason.ERROR),
        ({**GOOD, "type": "other"}, Reason.UNREADABLE),
        ({**GOOD, "content": "a"}, Reason.UNREADABLE),
        ({**GOOD, "content": ["a"]}, Reason.UNREADABLE),
        ({**GOOD, "content": [{"text": "a"}]}, Reason.UNREADABLE),
        ({**GOOD, "content": [{"type": "text"}]}, Reason.UNREADABLE),
        ({**GOOD, "content": [{"type": "thinking", "thinking": 1}]}, Reason.UNREADABLE),
    ],
)  # fmt: skip
def test_unreadable(answer: Any, reason: Reason) -> None:
    """What is no message is not taken for one."""
    with pytest.raises(Refused) as caught:
        split(answer)
    assert caught.value.reason is reason


def test_split() -> None:
    """A message is a sample; one that does not say why it ended is not stored."""
    assert split(GOOD).generations[0].tokens == 2
    assert split({**GOOD, "usage": None}).generations[0].tokens == 0
    assert split({**GOOD, "stop_reason": None}).refusal is Reason.UNFINISHED
    assert split({**GOOD, "content": [{"type": "surprise"}]}).refusal is None
