"""The registry of dialects."""

from __future__ import annotations

import pytest

from sglang_cached_addon.dialects import chat, completions, generate, installed, registry

OURS = (chat.DIALECT, completions.DIALECT, generate.DIALECT)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/generate", "sglang-generate"),
        ("PUT", "/generate", "sglang-generate"),
        ("POST", "/v1/completions", "openai-completion"),
        ("POST", "/v1/chat/completions", "openai-chat"),
    ],
)
def test_installed(method: str, path: str, name: str) -> None:
    """An API would not be cached although it is documented."""
    assert installed()[method, path].name == name


@pytest.mark.parametrize(
    "route",
    [
        ("GET", "/generate"),
        ("PUT", "/v1/completions"),
        ("POST", "/v1/completions/"),
        ("POST", "/generate?x=1"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
    ],
)
def test_other_routes(route: tuple[str, str]) -> None:
    """A route whose answers nobody understands would be cached."""
    assert route not in installed()


def test_names_are_unique() -> None:
    """One API's samples would be given as another's."""
    assert len({dialect.name for dialect in OURS}) == len(OURS)


@pytest.mark.parametrize("dialect", OURS, ids=lambda dialect: dialect.name)
def test_conflict(dialect) -> None:
    """Which of two plugins answers would depend on chance."""

    class Rival(type(dialect)):
        name = "rival"

    with pytest.raises(ValueError, match=f"{dialect.routes[0][1]}.*{dialect.name} and rival"):
        registry([dialect, Rival()])


def test_third_party() -> None:
    """A plugin for another API could not be added."""

    class Other(type(chat.DIALECT)):
        name = "other"
        routes = (("POST", "/other"),)

    routes = registry([*OURS, Other()])
    assert routes["POST", "/other"].name == "other"
    assert len(routes) == 5


def test_empty() -> None:
    """A set-up without dialects would not start."""
    assert registry([]) == {}
