"""What the dialects of both APIs do alike."""

from __future__ import annotations

import orjson

from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.dialects import chat, completions


def test_what_is_asked_for() -> None:
    """An upstream call has the number of samples that are short, and what makes each of them tell
    its own tokens; the client's body stays as it is."""
    for api, prompt, tells in (
        (chat.DIALECT, {"messages": [{"role": "user", "content": "a"}]}, "return_meta_info"),
        (completions.DIALECT, {"prompt": "a"}, "return_token_ids"),
    ):
        call = api.read({**prompt, "n": 5})
        before = orjson.dumps(call.body)
        for server, short, added in (
            (Server(SGLANG), 3, {tells: True}),
            (Server(SGLANG), 1, {}),
            (Server(VLLM), 3, {"return_token_ids": True}),
            (Server(), 3, {}),
        ):
            sent = api.trim(call, [short], lambda: "minted", server)
            assert sent.body == {**call.body, "n": short, **added}, (api.name, server, short)
            assert (sent.n, sent.order, sent.total) == (short, (0,), short), (api.name, server)
        assert orjson.dumps(call.body) == before, api.name


def test_events_have_no_whole_choice() -> None:
    """What an event of these APIs says stays, where its choice is cut off."""
    for api in (chat.DIALECT, completions.DIALECT):
        event = {"choices": [{"index": 0, "finish_reason": None}]}
        api.cut(event)
        assert event == {"choices": [{"index": 0, "finish_reason": None}]}, api.name
