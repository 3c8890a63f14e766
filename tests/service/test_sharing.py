"""How several equal calls of a run are one call to upstream."""

from __future__ import annotations

import itertools
from typing import Any

from sglang_cached_addon import dialects
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.findings import Known, Landed, Manner
from sglang_cached_addon.service.sharing import Sharing

DIALECTS = dialects.installed()
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"


def known(path: str, body: dict[str, Any]) -> tuple[Known, Plan]:
    """A call of which nothing is stored."""
    dialect = DIALECTS["POST", path]
    call = dialect.read(body)
    names = tuple(keys.Digester("", dialect.name).key(item) for item in call.items)
    found = Known(dialect, call, names)
    return found, Plan(call, names, ((),) * len(names), ((),) * len(names))


def shared(path: str, body: dict[str, Any], sharing: Sharing, others: int = 3) -> Any:
    """What goes upstream for a call and for those that lack so many samples of its first pool."""
    call, plan = known(path, body)
    ids = itertools.count(1)
    found = sharing.shared(
        call, plan, plan.shortfalls, {call.keys[0]: others}, lambda: f"{next(ids):032x}", UNKNOWN
    )
    return found and (found[2].body, found[3])


def test_manners() -> None:
    """`n` is what all want; a list has each prompt so often; what is not the same call then is not
    shared."""
    sharing = Sharing()
    prompt = {"text": "q", "sampling_params": {"temperature": 1, "n": 1}, "x": 1}
    many = {**prompt, "sampling_params": {"temperature": 1, "n": 4}}
    assert shared(GENERATE, prompt, sharing) == (many, Manner.N)
    assert shared(GENERATE, {"text": "q"}, sharing) is None  # without parameters is another call
    assert shared(COMPLETIONS, {"prompt": "q"}, sharing) == ({"prompt": "q", "n": 4}, Manner.N)
    for lone in ("image_data", "modalities"):
        assert shared(GENERATE, {"text": "q", lone: ["data:x"]}, sharing) is None, lone
    refused = Landed(400, b'{"error":"n > 1 is not supported"}', refusal=Reason.STATUS)
    for name in ("sglang-generate", "openai-completion", "openai-chat"):
        assert sharing.learn(UNKNOWN, name, Manner.N, refused)
    assert shared(GENERATE, prompt, sharing) == (
        {"text": ["q"] * 4, "sampling_params": {"temperature": 1}, "x": 1}, Manner.LIST,
    )  # fmt: skip
    ids = shared(GENERATE, {"input_ids": [1, 2], "rid": "r"}, sharing)
    assert ids[0]["input_ids"] == [[1, 2]] * 4
    assert len(set(ids[0]["rid"])) == 4
    assert shared(GENERATE, {"text": ["q", "r"]}, sharing) is None
    assert shared(COMPLETIONS, {"prompt": "q"}, sharing) is None
    assert sharing.learn(UNKNOWN, "sglang-generate", Manner.LIST, refused)
    assert shared(GENERATE, prompt, sharing) is None
    assert sharing.manner(Server(SGLANG), "sglang-generate") is Manner.N  # another server


def test_what_is_learnt() -> None:
    """A refusal counts where it speaks of `n`; so does an answer that is not what was asked for."""
    for status, said, refusal, is_learnt in (
        (400, b'{"message":"n must be 1"}', Reason.STATUS, True),
        (422, b'{"message":"`n` is not supported"}', Reason.STATUS, True),
        (400, b"'n': extra fields not permitted", Reason.STATUS, True),
        (400, b'{"message":"no\\n such model"}', Reason.STATUS, False),
        (400, b'{"message":"max_new_tokens is too large"}', Reason.STATUS, False),
        (503, b"n", Reason.STATUS, False),
        (200, b"", Reason.UNREADABLE, True),
        (200, b"", Reason.SHARED_USAGE, True),
        (200, b"", Reason.ABORT, False),
        (200, b"", None, False),
    ):
        sharing = Sharing()
        landed = Landed(status, said, refusal=refusal)
        assert sharing.learn(UNKNOWN, "x", Manner.N, landed) is is_learnt, said
        wanted = Manner.LIST if is_learnt else Manner.N
        assert sharing.manner(UNKNOWN, "x") is wanted, said
