"""The structure holds: who may import what, and that each module has its tests."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import sglang_cached_addon
from sglang_cached_addon.dialects import GROUP

PACKAGE = Path(sglang_cached_addon.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

ROOMS = {
    # who may be imported from where; "" is what lies beside the rooms
    "core": {"core"},
    "wire": {"core", "wire"},
    "dialects": {"core", "wire", "dialects"},
    "store": {"core", "store"},
    "upstream": {"core", "wire", "upstream"},
    "service": {"core", "wire", "dialects", "store", "upstream", "service"},
    "option": {"option"},
    "settings": {"core", "option"},
    "catalog": {"core", "option", "dialects", "store", "service", "catalog"},
    "assembly": {"core", "wire", "dialects", "store", "upstream", "service", "catalog", "settings"},
    "admin": {"core", "store", "upstream", "service", "catalog", "settings", "assembly", "admin"},
    "archive": {"core", "dialects", "store", "upstream", "catalog", "archive"},
    "proxy": {
        "core",
        "wire",
        "dialects",
        "store",
        "upstream",
        "service",
        "admin",
        "assembly",
        "option",
        "settings",
        "proxy",
        "addon",
    },
}
"""The rooms of the house, and those that each may use."""

KNOWS_MITMPROXY = {"addon.py", "proxy"}
IO_MODULES = {
    "asyncio", "datetime", "fcntl", "http", "os", "pathlib", "random", "secrets", "selectors",
    "shutil", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
PURE_ROOMS = {"core", "wire", "dialects", "admin"}
PURE = {
    "settings.py", "option.py", "cli/diagnosis.py", "cli/server_diagnosis.py",
    "cli/requests.py", "cli/tally.py",
    "proxy/start.py",
    "service/exchange.py", "service/flights.py",
    "service/landing.py", "service/relay.py", "service/slices.py", "service/stream.py",
    "upstream/belief.py", "upstream/changes.py", "store/placing.py", "store/journal/index.py",
    "store/journal/lines.py", "store/journal/extents.py", "store/memory.py", "store/pool.py",
    "store/removals.py", "catalog/entry.py", "catalog/query.py", "catalog/sieve.py",
    "store/redis/clears.py", "store/redis/element.py", "store/redis/protocol.py", "store/totals.py",
}  # fmt: skip
"""What decides nothing by a clock or by chance, and reads and writes nothing."""
# Pure by what they do with it: a path is a value there.
# Who waits for whom is no I/O either, though it takes an event loop.
VALUES_ONLY = {
    "wire/location.py": {"urllib"}, "admin/request.py": {"urllib"},
    "settings.py": {"pathlib"}, "service/flights.py": {"asyncio"},
    "service/stream.py": {"asyncio"}, "upstream/changes.py": {"asyncio"},
    "option.py": {"pathlib"}, "wire/failures.py": {"os", "socket", "ssl"},
    "wire/observing.py": {"asyncio"}, "core/log_line.py": {"datetime"},
}  # fmt: skip
DOES_IO = {"wire/client.py", "wire/connection.py", "wire/descriptors.py", "wire/tls.py"}
"""The exceptions in a pure room."""


DIALECTS = {point.value.split(":")[0].split(".")[2] for point in entry_points(group=GROUP)}
"""The modules of the dialects, or their folders."""

OWN = {"self", "cls"}
"""What private attributes may be taken of."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text())


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports fail under mitmdump -s"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def room(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def is_pure(path: Path) -> bool:
    name = path.as_posix()
    return name in PURE or (path.parts[0] in PURE_ROOMS and name not in DOES_IO)


def test_mitmproxy_stays_in_its_rooms() -> None:
    """Only the shell knows mitmproxy, so that the core can be read and tested without it."""
    knows = {path.as_posix() for path in MODULES if "mitmproxy" in roots(imports(path))}
    strangers = {name for name in knows if name.split("/")[0] not in KNOWS_MITMPROXY}
    assert not strangers


def test_what_is_private_is_used_in_one_place() -> None:
    """`proxy/inside.py`, and what checks it, use what mitmproxy and asyncio do not promise; `wire`
    uses what h11 does not."""
    for path in MODULES:
        if path.as_posix() in ("proxy/inside.py", "proxy/selfcheck.py"):
            continue
        private = {
            n.attr
            for n in ast.walk(parsed(path))
            if isinstance(n, ast.Attribute)
            and n.attr[0] == "_"
            and n.attr[-1] != "_"
            and not (isinstance(n.value, ast.Name) and n.value.id in OWN)
        } | {name for name in imports(path) if "._" in name and "_addon" not in name}
        if path.parts[0] == "wire":
            private = {name for name in private if not name.startswith("h11.")}
        if room(path) in ("addon", "proxy"):
            assert not private, path


def test_what_decides_is_pure() -> None:
    """It knows no clock, no chance, no files, no sockets."""
    assert {Path(name) for name in PURE | DOES_IO | set(VALUES_ONLY)} <= set(MODULES)
    for path in filter(is_pure, MODULES):
        allowed = VALUES_ONLY.get(path.as_posix(), set())
        assert not roots(imports(path)) & IO_MODULES - allowed, path


def test_imports_point_one_way() -> None:
    """A room uses those below it alone, and a dialect uses no other dialect."""
    for path in MODULES:
        ours = {
            n.removeprefix("sglang_cached_addon.") for n in imports(path) if "sglang_cached" in n
        }
        if allowed := ROOMS.get(room(path)):
            used = {name.split(".")[0] for name in ours} - {"sglang_cached_addon", "__version__"}
            assert used <= allowed, path
        if path.parts[0] == "dialects":
            others = DIALECTS - {path.stem.split("_")[0]}
            used = {n.split(".")[1].split("_")[0] for n in ours if n.startswith("dialects.")}
            assert not used & others, path


def test_each_module_has_its_tests() -> None:
    """`x/y.py` is tested by `x/test_y.py`: a reader finds them without searching."""
    for path in MODULES:
        is_empty = len(parsed(path).body) == 1
        if is_empty or path.name == "__main__.py" or path == Path("__init__.py"):
            continue
        if path.parts[0] == "simulator":
            path = Path("simulator.py")
        name = "init" if path.stem == "__init__" else path.stem
        assert (TESTS / path.parent / f"test_{name}.py").is_file(), path


def test_each_module_states_its_contract() -> None:
    """Every file opens with what it is for."""
    for path in MODULES:
        assert ast.get_docstring(parsed(path)), path
