"""`sglang-cached simulate`: the stand-in server, for trying things without a GPU."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click


@click.command()
@click.option(
    "--port", default=30000, show_default=True, help="Where to listen; 0 takes a free port."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--seed", default=0, show_default=True, help="Of the words that it makes up.")
@click.option(
    "--tokens-per-second", default=100.0, show_default=True, help="Of each sample; 0: at once."
)
@click.option("--time-to-first-token", default=0.1, show_default=True, help="Seconds.")
@click.option("--api-key", default="", help="Ask for this key, as SGLang does.")
def simulate(port: int, host: str, **profile: Any) -> None:
    """Run a stand-in for SGLang: same HTTP, made-up words, no model."""
    import asyncio  # takes its time

    sys.exit(asyncio.run(_serve(host, port, profile)))


async def _serve(host: str, port: int, profile: dict[str, Any]) -> int:
    import asyncio

    from sglang_cached_addon.simulator import Profile, Simulator

    simulator = Simulator(Profile(**profile))
    try:
        port = await simulator.start(host, port)
    except OSError as e:
        click.echo(f"sglang-cached: cannot listen on {host}:{port}: {e.strerror}", err=True)
        return 1
    click.echo(f"simulator (a stand-in, not a model) on http://{host}:{port}; Ctrl+C ends it")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await simulator.stop()
    return 0
