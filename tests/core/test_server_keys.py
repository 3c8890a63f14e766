"""Which settings of a server count."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.server_keys import chosen
from tests.tables import each


@each(
    ("said", "counts"),
    [
        ({"dtype": "x", "port": 1, "speculative_new": 2}, {"dtype": "x", "speculative_new": 2}),
        ({"enable_mis": True}, {"enable_mis": True}), ({"enable_mis": False}, {}),
        (None, {}), ("odd", {}), ({"api_key": "secret"}, {}),
    ],
)  # fmt: skip
def test_chosen(said: Any, counts: dict[str, Any]) -> None:
    """Settings count by their names, some only where they are true; keys never do."""
    assert chosen(said) == counts
