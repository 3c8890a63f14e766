"""`sglang-cached demo`, as a user runs it."""

from __future__ import annotations

import re
import signal
import subprocess

import requests

from tests.conftest import COMMAND


def test_demo() -> None:
    """The table shows each kind of answer, and the sums agree with it."""
    done = subprocess.run([str(COMMAND), "demo"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "a stand-in, not a model" in done.stdout
    rows = re.findall(r"(MISS|HIT|PARTIAL) +(\d+) +(\d+) ", done.stdout)
    assert [(kind, int(a), int(b)) for kind, a, b in rows] == [
        ("MISS", 0, 1),
        ("HIT", 1, 0),
        ("PARTIAL", 1, 2),
        ("PARTIAL", 3, 2),
        ("HIT", 5, 0),
        ("PARTIAL", 1, 2),
        ("HIT", 3, 0),
        ("MISS", 0, 2),
        ("HIT", 2, 0),
    ]
    cached = sum(int(row[1]) for row in rows)
    generated = sum(int(row[2]) for row in rows)
    assert f"{cached} samples from the cache, {generated} generated" in done.stdout


def test_keep() -> None:
    """--keep leaves both running, prints curl lines that work, and ends on Ctrl+C."""
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
