"""`sglang-cached demo`, as a user runs it."""

from __future__ import annotations

import re
import signal
import subprocess

import requests

from tests.conftest import COMMAND
from tests.test_readme import README


def rows_of(text: str) -> list[tuple[str, ...]]:
    """What the demo's table says in a text, but for the times."""
    return re.findall(r"^(\S.*?) +(MISS|HIT|PARTIAL) +(\d+) +(\d+) ", text, re.M)


def check(output: str) -> None:
    """The table is the one in the README, and the sums agree with it."""
    assert "a stand-in, not a model" in output
    rows = rows_of(output)
    assert rows == rows_of(README.read_text())
    assert [kind for _, kind, _, _ in rows] == [
        "MISS", "HIT", "PARTIAL", "PARTIAL", "HIT", "PARTIAL", "HIT", "MISS", "HIT",
    ]  # fmt: skip
    cached, generated = (sum(int(row[at]) for row in rows) for at in (2, 3))
    assert f"{cached} samples from the cache, {generated} generated" in output


def test_demo() -> None:
    """It shows its table; --keep leaves both running, prints curl lines that work, and ends on
    Ctrl+C."""
    process = subprocess.Popen(
        [str(COMMAND), "demo", "--keep"],
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout
    try:
        output = ""
        while "/cache/clear" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        check(output)
        found = re.search(r"curl -i (http://\S+)/generate .* -d '(.*)'", output)
        assert found
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{found[1]}/generate", data=found[2], headers=headers, timeout=30)
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
