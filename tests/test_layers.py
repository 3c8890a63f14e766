"""The structure holds: who may import what, and that each module has its tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sglang_cached_addon

PACKAGE = Path(sglang_cached_addon.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

KNOWS_MITMPROXY = {
    "addon.py", "answers.py", "connections.py", "express.py", "feed.py", "gateway.py", "passage.py",
    "runner.py", "streaming.py",
}  # fmt: skip
DOES_IO = {
    "aborting.py", "addon.py", "asking.py", "client.py", "connections.py", "descriptors.py",
    "express.py", "feed.py", "fetching.py", "listening.py", "output.py", "passage.py", "runner.py",
    "service.py", "store/__init__.py", "store/files.py", "store/follower.py", "store/journal.py",
    "store/outbox.py", "store/redis.py", "store/rewriting.py", "store/shared.py", "store/state.py",
    "store/syncer.py", "streaming.py", "upstream/__init__.py", "upstream/asking.py",
    "upstream/gate.py", "upstream/model.py", "upstream/single.py",
}  # fmt: skip
IO_MODULES = {
    "asyncio", "datetime", "fcntl", "http", "os", "pathlib", "random", "secrets", "selectors",
    "shutil", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
PURE = {
    "admission.py", "cache.py", "directives.py", "exchange.py", "framing.py", "identity.py",
    "inflight.py", "keys.py", "location.py", "memo.py", "nearest.py", "outcome.py", "policy.py",
    "printable.py", "relay.py", "routes.py", "routing.py", "settings.py", "sse.py", "stream.py",
    "strict.py", "wire.py", "upstream/belief.py", "upstream/changes.py",
    "slices.py",
    "store/clears.py", "store/element.py", "store/index.py", "store/lines.py", "store/memory.py",
}  # fmt: skip
# Pure by what they do with it: a path is a value there.
# Who waits for whom is no I/O either, though it takes an event loop.
VALUES_ONLY = {"location.py": {"urllib"},
    "settings.py": {"pathlib"}, "inflight.py": {"asyncio"}, "stream.py": {"asyncio"},
    "upstream/changes.py": {"asyncio"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports fail under mitmdump -s"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def is_shell(path: Path) -> bool:
    """Commands and the stand-in server may do what they need."""
    return path.parts[0] in ("cli", "simulator", "__main__.py", "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_mitmproxy_stays_in_its_rooms(path: Path) -> None:
    """Only the shell knows mitmproxy, so the core can be read and tested without it."""
    if str(path) not in KNOWS_MITMPROXY:
        assert "mitmproxy" not in roots(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_the_core_does_no_io(path: Path) -> None:
    """What decides is pure: no clock, no randomness, no files, no sockets."""
    if not is_shell(path) and str(path) not in DOES_IO:
        allowed = VALUES_ONLY.get(str(path), set())
        assert not roots(imports(path)) & IO_MODULES - allowed


@pytest.mark.parametrize("path", sorted(PURE))
def test_what_decides_is_pure(path: str) -> None:
    """A table of the tests would let in what it is there to keep out."""
    assert Path(path) in MODULES
    assert path not in KNOWS_MITMPROXY | DOES_IO


def test_each_module_is_in_a_table() -> None:
    """Nobody would have decided what a new module may do."""
    free = {str(path) for path in MODULES if not is_shell(path) and path.parts[0] != "dialects"}
    assert free == PURE | DOES_IO | KNOWS_MITMPROXY


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_inwards(path: Path) -> None:
    """The core does not import the shell, and a dialect imports no other dialect."""
    ours = {n.removeprefix("sglang_cached_addon.") for n in imports(path) if "sglang_cached" in n}
    names = {name.split(".")[0] for name in ours}
    shell = {path.removesuffix(".py") for path in KNOWS_MITMPROXY} | {"cli", "simulator"}
    if not is_shell(path) and str(path) not in KNOWS_MITMPROXY:
        assert not names & shell
    if str(path) in PURE:
        assert not names & {"client", "service", "upstream"}
    if path.parts[0] == "dialects":
        others = {"generate", "completions", "chat"} - {path.stem}
        assert not {name.split(".")[1] for name in ours if name.startswith("dialects.")} & others


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_each_module_has_its_tests(path: Path) -> None:
    """`x/y.py` is tested by `x/test_y.py`; a reader finds them without searching."""
    if path.name in ("__main__.py",) or path == Path("__init__.py") or path.parts[0] == "simulator":
        path = Path("simulator.py") if path.parts[0] == "simulator" else Path("layers.py")
    name = "init" if path.stem == "__init__" else path.stem
    assert (TESTS / path.parent / f"test_{name}.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_each_module_states_its_contract(path: Path) -> None:
    """Every file opens with what it is for."""
    assert ast.get_docstring(ast.parse((PACKAGE / path).read_text()))
