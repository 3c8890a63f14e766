"""The examples do what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Proxy
from tests.simulator import Simulator

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))
"""The others are in `test_deployment`."""


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example(path: Path, proxy: Proxy) -> None:
    """Each runs against a proxy and ends well."""
    command = [sys.executable] if path.suffix == ".py" else ["bash"]
    done = subprocess.run(
        [*command, str(path), proxy.url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example_fails_without_a_cache(path: Path, simulator: Simulator) -> None:
    """Each notices when there is no cache behind the URL."""
    command = [sys.executable] if path.suffix == ".py" else ["bash"]
    done = subprocess.run(
        [*command, str(path), simulator.url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0


def test_readme(proxy: Proxy) -> None:
    """What the README shows can be typed, and is answered as it says."""
    text = (EXAMPLES.parent / "README.md").read_text().replace("http://localhost:30001", proxy.url)
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    (command,) = re.findall(r"^    (curl .*\\\n.*)$", text, re.M)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "X-Cache: MISS" in done.stdout
    stats = proxy.stats()
    assert (stats["hits"], stats["misses"], stats["total_responses"]) == (1, 2, 3)
