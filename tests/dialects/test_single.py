"""What holds of APIs whose calls are for one sample each."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.dialects.base import Generating
from sglang_cached_addon.dialects.messages import MESSAGES
from sglang_cached_addon.dialects.responses import RESPONSES
from tests.dialects.bodies import minter
from tests.tables import each

BOTH: list[tuple[Generating, dict[str, Any]]] = [
    (MESSAGES, {"max_tokens": 9, "messages": [{"role": "user", "content": "a"}], "n": 3}),
    (RESPONSES, {"input": "a", "n": 3}),
]


@each(("dialect", "body"), BOTH)
def test_what_is_sent(dialect: Generating, body: dict[str, Any]) -> None:
    """Upstream is asked what the client asks, for one sample, whatever it calls `n`."""
    call = dialect.read(body)
    sent = dialect.trim(call, [1], minter(), Server(SGLANG))
    assert (sent.body, sent.order, sent.n, sent.total) == (body, (0,), 1, 1)
    assert (call.n, call.rids, sent.server) == (1, (), Server(SGLANG))
    assert dialect.repeated(body, 2) is None
    assert dialect.usage(call, [[Generation(0, b"{}", 0)]]) is None


@each(("dialect", "body"), BOTH)
def test_events_stay_as_they_are(dialect: Generating, body: dict[str, Any]) -> None:
    """An event needs no number, and no usage is taken out of it."""
    event = {"type": "ping"}
    raw = orjson.dumps(event)
    dialect.renumber(event, [0], Generation(0, b"{}", 0))
    dialect.cut(event)
    assert dialect.without_usage(raw, event) == raw == orjson.dumps(event)
