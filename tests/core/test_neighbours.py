"""Servers that are not SGLang: what names their models, and what does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_cached_addon.core import neighbours
from sglang_cached_addon.core.identity import Identity, identify
from tests.tables import each

SERVERS = Path(__file__).parents[1] / "servers"
NOW = 1_800_000_000.0


def recorded(name: str) -> dict[str, Any]:
    """What a real server has answered on the routes that may say who it is; those it has not are
    left out."""
    said = json.loads((SERVERS / f"{name}.json").read_bytes())
    return {
        path: json.loads(one["response"]["body"])
        for path, one in said.items()
        if path.startswith("/") and one["response"]["status"] == 200
    }


TGI = {
    "/v1/models": {"object": "list", "data": [
        {"id": "org/m", "object": "model", "created": 0, "owned_by": "org/m"}]},
    "/info": {"model_id": "org/m", "model_sha": "5f1c", "model_dtype": "float16",
              "version": "3.3.4", "sha": "9f38", "docker_label": None, "max_total_tokens": 2048},
}  # fmt: skip
OLLAMA = {
    "/v1/models": {"object": "list", "data": [
        {"id": "m:latest", "object": "model", "created": 1_700_000_000, "owned_by": "library"}]},
    "/api/tags": {"models": [{"name": "m:latest", "digest": "sha256:a", "size": 1,
                              "modified_at": "2026-01-01T00:00:00Z"}]},
}  # fmt: skip


def who(said: dict[str, Any], moment: float | None = NOW) -> Identity | None:
    """Who answers with these documents."""
    more = {path: said[path] for routes in neighbours.ROUTES.values() for path in routes
            if path in said}  # fmt: skip
    info, server = said.get("/get_model_info"), said.get("/get_server_info")
    return identify(info, server, said.get("/v1/models"), more, moment)


def changed(said: dict[str, Any], change: Callable[[Any], object]) -> dict[str, Any]:
    other = copy.deepcopy(said)
    change(other)
    return other


def _model(said: Any) -> Any:
    return said["/v1/models"]["data"][0]


@each(
    ("said", "change"),
    [
        (recorded("vllm"), lambda said: _model(said).update(root="/another")),
        (recorded("vllm"), lambda said: _model(said).update(max_model_len=7)),
        (recorded("vllm"), lambda said: said["/version"].update(version="0.1")),
        (recorded("llama_cpp"), lambda said: said["/props"].update(model_path="another.gguf")),
        (recorded("llama_cpp"), lambda said: said["/props"].update(chat_template="another")),
        (recorded("llama_cpp"), lambda said: _model(said)["meta"].update(size=1)),
        (TGI, lambda said: said["/info"].update(model_sha="another")),
        (TGI, lambda said: said["/info"].update(version="4")),
        (OLLAMA, lambda said: said["/api/tags"]["models"][0].update(digest="sha256:b")),
        (OLLAMA, lambda said: _model(said).update(created=1_700_000_001)),
        (recorded("gateway"),
         lambda said: said["/workers"]["workers"][0]["metadata"].update(model_path="/another")),
    ],
)  # fmt: skip
def test_what_names_a_model(said: dict[str, Any], change: Callable[[Any], object]) -> None:
    """A server whose model is another one shows it, and is another one to the cache: also where the
    name is the same."""
    one, other = who(said), who(changed(said, change))
    assert one and other and one.digest != other.digest


@each(
    ("said", "change"),
    [
        (recorded("vllm"), lambda said: _model(said).update(created=int(NOW) + 3, permission=[])),
        (recorded("llama_cpp"), lambda said: said["/props"].update(is_sleeping=True)),
        (OLLAMA, lambda said: said["/api/tags"]["models"][0].update(modified_at="now")),
        (recorded("gateway"), lambda said: said["/workers"]["workers"][0].update(load=9)),
        (recorded("gateway"), lambda said: said["/workers"]["workers"].append(
            {**said["/workers"]["workers"][0], "id": "b", "url": "http://b", "is_healthy": False,
             "metadata": dict(reversed(said["/workers"]["workers"][0]["metadata"].items()))})),
    ],
)  # fmt: skip
def test_what_names_no_model(said: dict[str, Any], change: Callable[[Any], object]) -> None:
    """What differs from one question to the next, or from one worker of a model to the next, makes
    nobody another one."""
    if "vllm" in str(said.get("/v1/models")):
        _model(said)["created"] = int(NOW)
    one, other = who(said), who(changed(said, change))
    assert one and other and one.digest == other.digest


def test_a_time_counts_where_it_is_not_that_of_the_answer() -> None:
    """`created` counts where the answer tells its own time, and `created` is another one."""
    at = [changed(OLLAMA, lambda said, t=t: _model(said).update(created=t)) for t in (1, 2)]
    digests = {moment: {(who(said, moment) or OLLAMA).digest for said in at}  # type: ignore[union-attr]
               for moment in (None, NOW, 30.0)}  # fmt: skip
    assert [len(found) for found in digests.values()] == [1, 2, 1]


def test_a_gateway_whose_workers_differ() -> None:
    """Behind a gateway, two models of one name are nobody: any of them may answer. Two names are
    two models, and a call says which one it wants."""
    said = recorded("gateway")
    (worker,) = said["/workers"]["workers"]

    def with_another(**members: Any) -> dict[str, Any]:
        metadata = {**worker["metadata"], "model_path": "/another"}
        other = {**worker, "url": "http://b", "metadata": metadata, **members}
        return changed(said, lambda said: said["/workers"]["workers"].append(other))

    assert who(with_another()) is None
    several = who(with_another(model_id="another"))
    assert several and several.digest != who(said).digest  # type: ignore[union-attr]


@each(
    ("said", "engine", "apart", "has_process"),
    [
        (recorded("vllm"), "vllm", True, False), (recorded("llama_cpp"), "llama.cpp", True, True),
        (TGI, "tgi", True, False), (OLLAMA, "ollama", True, False),
        (recorded("gateway"), "sglang", True, False),
    ],
)  # fmt: skip
def test_what_is_known_of_each(
    said: dict[str, Any], engine: str, apart: bool, has_process: bool
) -> None:
    """The streams of all of them are their own; llama.cpp tells one process from another."""
    found = who(said)
    assert found and (found.engine, found.streams_apart) == (engine, apart)
    assert bool(found.incarnation) is has_process


@each("odd", [None, [], "x", {"models": 3}, {"models": [3]}, {"workers": {}}, {"workers": [3]}, {}])
def test_odd_documents(odd: Any) -> None:
    """What has not the form that it has elsewhere says nothing."""
    more = dict.fromkeys((path for routes in neighbours.ROUTES.values() for path in routes), odd)
    assert neighbours.told(more) == {}
    assert not neighbours.is_ambiguous(more)
    assert neighbours.process(more) == ""


@each("name", ["vllm", "llama_cpp", "gateway", "tgi", "ollama"])
def test_the_page_says_where_it_is_known_from(name: str) -> None:
    """The page names each server with the version that its answers are of, and says which were
    recorded and which were written from its source."""
    what = json.loads((SERVERS / f"{name}.json").read_bytes())["what"]
    program = " ".join(what.replace(",", "").split()[:2])
    page = (SERVERS.parents[1] / "docs/servers.md").read_text()
    (row,) = [line for line in page.splitlines() if f"servers/{name}.json" in line]
    assert row.startswith(f"| {program} | ")
    assert ("recorded" in row) is ("source" not in what)
