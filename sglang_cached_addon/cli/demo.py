"""`sglang-cached demo`: what the cache does, shown on a stand-in, without a GPU.

Starts the simulator and a real `sglang-cached start`, sends real requests through real
sockets, and prints what each of them took from where.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import orjson

if TYPE_CHECKING:
    from sglang_cached_addon.simulator import Simulator

PROMPT = "Write a line about the sea."
MODEL = "simulated"

Send = Callable[[], str]
"""Sends a request; gives the value of the answer's `X-Cache`."""


@click.command()
@click.option(
    "--keep", is_flag=True, help="Leave both running until Ctrl+C, with curl lines to try."
)
def demo(keep: bool) -> None:
    """Show what is generated once, on a stand-in for SGLang (no GPU, no model)."""
    import tempfile

    from sglang_cached_addon.simulator import Profile, Simulator, running

    profile = Profile(tokens_per_second=80.0, time_to_first_token=0.1, model=MODEL)
    with (
        running(Simulator(profile)) as simulator,
        tempfile.TemporaryDirectory(prefix="sglang-cached-demo-") as folder,
        _proxy(simulator.url, folder) as url,
    ):
        click.echo(f"simulator (a stand-in, not a model)  {simulator.url}")
        click.echo(f"sglang-cached in front of it         {url}\n")
        _show(simulator, url)
        if keep:
            _keep(url)


def _show(simulator: Simulator, url: str) -> None:
    click.echo(f"{'request':<44} {'X-Cache':<8} {'from cache':>10} {'generated':>9} {'time':>10}")
    for label, wanted, send in _steps(url):
        before = simulator.samples
        started = time.perf_counter()
        kind = send()
        milliseconds = (time.perf_counter() - started) * 1000
        generated = simulator.samples - before
        click.echo(
            f"{label:<44} {kind:<8} {wanted - generated:>10} {generated:>9} {milliseconds:>7.1f} ms"
        )
    stats = orjson.loads(_open(f"{url}/cache/stats")[0])
    click.echo(
        f"\n{stats['samples_from_cache']} samples from the cache, {simulator.samples} generated; "
        f"saved {stats['tokens_saved']} tokens, "
        f"and {stats['upstream_seconds_saved']:.1f} s on full hits"
    )


def _steps(url: str) -> Iterator[tuple[str, int, Send]]:
    """What is asked, how many samples that wants, and how to send it."""

    def generate(text: str | list[str], n: int = 1) -> Send:
        params = {"temperature": 0.8, "max_new_tokens": 24, "n": n}
        return lambda: _post(url, "/generate", {"text": text, "sampling_params": params})

    yield "/generate, n=1", 1, generate(PROMPT)
    yield "/generate, the same again", 1, generate(PROMPT)
    yield "/generate, n=3: two more", 3, generate(PROMPT, 3)
    yield "/generate, n=5: two more", 5, generate(PROMPT, 5)
    yield "/generate, n=5 again", 5, generate(PROMPT, 5)
    batch = ["A red boat.", PROMPT, "A blue boat."]
    yield "/generate, three prompts, one of them known", 3, generate(batch)
    yield "/generate, the three in another order", 3, generate(batch[::-1])
    with _chat(url) as (name, chat):
        yield f"{name}, chat, n=2", 2, chat
        yield f"{name}, chat, n=2, the same again", 2, chat


def _post(url: str, path: str, body: dict[str, Any]) -> str:
    return _open(url + path, orjson.dumps(body))[1]


def _open(url: str, body: bytes | None = None) -> tuple[bytes, str]:
    """What is answered, and its `X-Cache`."""
    from urllib.request import Request, urlopen  # take their time to import

    with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
        return answer.read(), str(answer.headers["X-Cache"])


@contextmanager
def _chat(url: str) -> Iterator[tuple[str, Send]]:
    """A chat call: the official client's where it is installed."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 24,
        "n": 2,
    }
    try:
        import openai
    except ImportError:
        yield "plain HTTP", lambda: _post(url, "/v1/chat/completions", body)
        return
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        create = client.chat.completions.with_raw_response.create
        yield "OpenAI client", lambda: str(create(**body).headers["X-Cache"])


@contextmanager
def _proxy(upstream: str, folder: str) -> Iterator[str]:
    """A `sglang-cached start` process on a free port; gives its URL."""
    arguments = ["--port", "0", "--host", "127.0.0.1", "--cache-path", folder, "--quiet"]
    command = [sys.executable, "-m", "sglang_cached_addon", "start", "--sglang-url", upstream]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in process.stdout:
            if found := re.search(r"listening\s+(http://\S+)", line):
                yield found[1]
                return
        raise click.ClickException("the proxy did not start; its message is above")
    finally:
        process.terminate()
        process.stdout.close()
        process.wait()


def _keep(url: str) -> None:
    body = orjson.dumps({"text": PROMPT, "sampling_params": {"max_new_tokens": 24, "n": 2}})
    click.echo("\nBoth keep running until Ctrl+C. Try:\n")
    click.echo(f"  curl -i {url}/generate -H 'Content-Type: application/json' -d '{body.decode()}'")
    click.echo(f"  curl {url}/cache/stats")
    click.echo(f"  curl -X POST {url}/cache/clear")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("")
