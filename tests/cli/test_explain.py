"""`sglang-cached explain` and what is typed wrongly; what it tells is tested end to end."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.store import DiskStore
from tests.cli.typed import typed
from tests.tables import each

WRONG: dict[str, tuple[list[str], str, str]] = {
    "no call": ([], "[]", "not a JSON object"),
    "no path": ([], '{"a":1}', "name it with --path"),
    "no header": (["-H", "x"], '{"text":"a"}', "is no header"),
}


@each("case", WRONG)
def test_typed_wrongly(case: str, tmp_path: Path) -> None:
    """It is told what is wrong with what, in a line."""
    DiskStore(tmp_path).close()
    arguments, text, told = WRONG[case]
    done = typed("explain", *arguments, "-", cache=tmp_path, input=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "<stdin>" in done.stderr


def test_an_empty_folder(tmp_path: Path) -> None:
    """Where nobody knows which model there was, it is told that nothing can be looked up."""
    DiskStore(tmp_path).close()
    done = typed("explain", "-", cache=tmp_path, input='{"text":"a"}')
    assert done.returncode == 0
    assert "outcome  bypass\nreason   no-model\n" in done.stdout
