"""The examples do what they show."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Proxy
from tests.simulator import Simulator

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))
"""The others are in `test_deployment`."""


def run(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises where a program does not end well. Python's run here: what they import takes longer
    than they do, and is imported once."""
    if path.suffix == ".sh":
        subprocess.run(["bash", str(path), url], timeout=60, check=True)
    else:
        monkeypatch.setattr(sys, "argv", [str(path), url])
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example(
    path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each runs against a proxy and ends well."""
    run(path, proxy.url, monkeypatch)
    assert capfd.readouterr().out


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example_fails_without_a_cache(
    path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each notices when there is no cache behind the URL."""
    with pytest.raises((subprocess.CalledProcessError, KeyError)):
        run(path, simulator.url, monkeypatch)


def test_readme(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the README shows can be typed, and is answered as it says."""
    text = (EXAMPLES.parent / "README.md").read_text().replace("http://localhost:30001", proxy.url)
    programs = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    commands = re.findall(r"^    (curl .*\\\n.*)$", text, re.M)
    (tmp_path / "shown.py").write_text("\n".join(programs))
    (tmp_path / "shown.sh").write_text("\n".join(commands))
    run(tmp_path / "shown.py", proxy.url, monkeypatch)
    said = capfd.readouterr()
    assert (bool(said.out.strip()), said.err) == (True, "")
    run(tmp_path / "shown.sh", proxy.url, monkeypatch)
    assert "X-Cache: MISS" in capfd.readouterr().out
    stats = proxy.stats()
    assert (stats["hits"], stats["misses"], stats["total_responses"]) == (1, 3, 4)
