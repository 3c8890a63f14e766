"""`sglang-cached simulate`, as a user runs it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess

import requests

from tests.conftest import COMMAND


def test_simulate() -> None:
    """It says that it is a stand-in, answers, and ends on SIGTERM."""
    process = subprocess.Popen(
        [str(COMMAND), "simulate", "--port", "0", "--tokens-per-second", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert "not a model" in line
        found = re.search(r"http://\S+?(?=;)", line)
        assert found
        body = {"text": "hello", "sampling_params": {"max_new_tokens": 3}}
        answer = requests.post(f"{found[0]}/generate", json=body, timeout=30)
        assert answer.json()["meta_info"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_port_taken() -> None:
    """A port in use is one clear line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [str(COMMAND), "simulate", "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert re.fullmatch(r"sglang-cached: cannot listen on .*\n", done.stderr)
