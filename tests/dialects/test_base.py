"""The shape of a plugin."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import chat, completions, generate, installed
from sglang_cached_addon.dialects.base import NULL, Dialect
from tests.dialects.bodies import item

VALUES: tuple[Any, ...] = ("x", True, 1, 1.5, ["x"], {"x": "y"}, None)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
OPENAI = {
    "rid": {str, list, NULL}, "stream": {bool}, "stream_options": {dict, NULL},
    "user": {str, NULL}, "session_id": {str, NULL}, "priority": {int, NULL},
    "custom_labels": {dict, NULL},
}  # fmt: skip
GENERATE = {
    "rid": {str, list, NULL}, "stream": {bool}, "session_id": {str, NULL}, "log_metrics": {bool},
    "no_logs": {bool}, "background": {bool}, "priority": {int, NULL}, "routing_key": {str, NULL},
    "conversation_id": {str, NULL}, "custom_labels": {dict, NULL},
    "external_trace_header": {dict, NULL}, "received_time": {int, float, NULL},
}  # fmt: skip
OURS: list[tuple[Dialect, dict[str, Any], dict[str, set[type]]]] = [
    # a body with one prompt, and the fields that may be left out of the key, with their types
    (chat.DIALECT, CHAT, OPENAI),
    (completions.DIALECT, {"model": "m", "prompt": "a"}, OPENAI),
    (generate.DIALECT, {"text": "a"}, GENERATE),
]


def test_ours_are_dialects() -> None:
    """Each installed dialect has all that a dialect must have."""
    members = [name for name in vars(Dialect) if not name.startswith("_")]
    assert "read" in members
    assert set(installed().values()) == {dialect for dialect, _, _ in OURS}
    for dialect, _, _ in OURS:
        assert all(hasattr(dialect, name) for name in members), dialect.name


def test_transport() -> None:
    """A transport field is left out of the key with a value of its types, so that clients that name
    or schedule their requests in other ways share samples. Any other value stays in the key, or the
    call is refused, so that upstream can refuse it."""
    for dialect, body, transport in OURS:
        plain = item(dialect, body)
        assert {name: set(kinds) for name, kinds in dialect.transport.items()} == transport
        for name, kinds in transport.items():
            for value in VALUES:
                value = False if name == "stream" and value is True else value
                is_left_out = type(value) in kinds and not (name == "rid" and type(value) is list)
                try:
                    is_same = item(dialect, {**body, name: value}) == plain
                    assert is_same is is_left_out, (dialect.name, name, value)
                except Refused as refused:
                    assert not is_left_out, (dialect.name, name, value)
                    assert refused.reason is Reason.MALFORMED, (dialect.name, name, value)


def test_list_of_rids_is_transport() -> None:
    """A list of ids for a batch is left out of the key."""
    for dialect, body in ((completions.DIALECT, {"prompt": ["a", "b"]}),
                          (generate.DIALECT, {"text": ["a", "b"]})):  # fmt: skip
        named = {**body, "rid": ["x", "y"]}
        assert dialect.read(named).items == dialect.read(body).items, dialect.name
