"""A conversation of Codex that is repeated asks the server nothing, against the simulator or a real
server."""

from __future__ import annotations

import pytest

from tests.conftest import Proxy
from tests.e2e.codex import Session
from tests.e2e.programs import IS_REAL, Json, all_hits, has_samples, model
from tests.e2e.test_sglang import prompt
from tests.tables import each

# A model that has nothing to say does not end by itself, and a stream that is cut off where there
# are tools is not stored.
FORMS: dict[str, Json] = {
    "text": {"stop": list("aeiou "), "max_output_tokens": 40},
    **({} if IS_REAL else {"tools": {"tool_choice": "required"}}),
}


@each("more", FORMS.values(), ids=FORMS)
def test_twice(more: Json, front: Proxy, upstream_url: str) -> None:
    """All that it asks is answered from the cache the second time, in a session with other ids,
    with the same events, the ids in them included."""
    if not has_samples(upstream_url):
        pytest.skip("this server does not generate")
    task, name = prompt("Fix the bug."), model(upstream_url)
    first, again = (Session(front.url, task, name, more) for _ in range(2))
    first.run()
    with all_hits(front, len(first.heard)):
        again.run()
    assert again.heard == first.heard
