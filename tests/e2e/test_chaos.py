"""Everything at once, over real sockets: clients that leave at any moment, an upstream that fails,
hangs and cuts, streams, lists, aborts, clears, updates. It ends quiet, and the next call is right.

`CHAOS_SECONDS` makes it longer, `CHAOS_SEED` another one; without them it takes a few seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import CHAT, COMPLETIONS, DONE, GENERATE, greedy, post
from tests.e2e.test_collapse import is_idle
from tests.simulator import Fault, Profile, Simulator, running

SECONDS = float(os.environ.get("CHAOS_SECONDS", "4"))
SEEDS = [int(os.environ["CHAOS_SEED"])] if "CHAOS_SEED" in os.environ else [1]
CLIENTS = 24
PROMPTS = [f"prompt {i}" for i in range(8)]
MODELS = ["model 1", "model 2"]

# Not those that say of themselves that they are of two models.
FAULTS = [
    Fault.ERROR_503, Fault.CUT, Fault.HOLD, Fault.PAUSE, Fault.ABORT, Fault.NOT_JSON,
    Fault.TOO_FEW, Fault.ERROR_BODY, Fault.ERROR_EVENT,
]  # fmt: skip

# What a client may be told when upstream, or somebody else, has done something to its call.
EXCUSES = {400, 502, 503, 504}


class Chaos:
    """What goes on, and what was seen."""

    def __init__(self, upstream: Simulator, proxy: Proxy, seed: int) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self.seed = seed
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.rids: list[str] = []
        self._numbers = itertools.count()
        self._says: dict[Any, str] = {}

    def says(self, path: str, prompt: str, model: str) -> str:
        """What a model says to a prompt."""
        if (path, prompt, model) not in self._says:
            body = greedy(path, prompt)
            self._says[path, prompt, model] = self.upstream.says(path, body, model=model)
        return self._says[path, prompt, model]

    async def run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            clients = [self._client(session, i, ends) for i in range(CLIENTS)]
            done = asyncio.gather(*clients)
            await asyncio.gather(self._trouble(session, ends), self._weather(done))
            await done

    async def _weather(self, done: asyncio.Future[Any]) -> None:
        """Upstream fails now and then, and what hangs goes on some time."""
        dice = random.Random(f"{self.seed} weather")
        while not done.done():
            if len(self.upstream.faults) < 3:
                self.upstream.faults.extend(dice.choices([*FAULTS, *[None] * 20], k=10))
            await asyncio.sleep(dice.uniform(0.02, 0.2))
            self.upstream.release()
        self.upstream.faults.clear()

    async def _trouble(self, session: aiohttp.ClientSession, ends: float) -> None:
        """What is done to everybody's calls."""
        dice = random.Random(f"{self.seed} trouble")
        models = itertools.cycle(MODELS)
        while time.monotonic() < ends:
            await asyncio.sleep(dice.uniform(0.01, 0.15))
            what = dice.choices(
                ["abort", "prefix", "all", "clear", "update", "pause", "stats"],
                [10, 2, 1, 2, 2, 1, 3],
            )[0]
            self.seen[what] += 1
            if what in ("abort", "prefix"):
                rid = dice.choice(self.rids[-20:] or ["none"])
                rid = rid[:-1] if what == "prefix" else rid
                await self._post(session, "/abort_request", {"rid": rid})
            elif what == "all":
                await self._post(session, "/abort_request", {"abort_all": True})
            elif what == "clear":
                await self._post(session, "/cache/clear", None)
            elif what == "update":
                body = {"model_path": next(models)}
                await self._post(session, "/update_weights_from_disk", body)
            elif what == "pause":
                await self._post(session, "/pause_generation", {})
                await asyncio.sleep(dice.uniform(0, 0.05))
                await self._post(session, "/continue_generation", {})
            else:
                async with session.get(self.proxy.url + "/cache/stats") as answer:
                    await answer.read()

    async def _post(self, session: aiohttp.ClientSession, path: str, body: Any) -> None:
        async with session.post(self.proxy.url + path, json=body) as answer:
            await answer.read()

    async def _client(self, session: aiohttp.ClientSession, number: int, ends: float) -> None:
        dice = random.Random(f"{self.seed} {number}")
        while time.monotonic() < ends:
            await self._call(session, dice)
            await asyncio.sleep(dice.choice([0, 0, 0.01]))

    async def _call(self, session: aiohttp.ClientSession, dice: random.Random) -> None:
        """One call, to its end or not."""
        path = dice.choice([GENERATE, COMPLETIONS, CHAT])
        is_list = path != CHAT and dice.random() < 0.3
        prompts = dice.choices(PROMPTS, k=dice.choice([1, 2, 3]) if is_list else 1)
        n = dice.choice([1, 1, 1, 2, 3])
        body = greedy(path, prompts if is_list else prompts[0], n)
        if dice.random() < 0.5:
            body["stream"] = True
        if n == 1 and dice.random() < 0.4:
            body["rid"] = f"rid {next(self._numbers)}"
            self.rids.append(f"{body['rid']}_0" if is_list else body["rid"])
        headers = {}
        if dice.random() < 0.15:
            headers["Cache-Control"] = dice.choice(
                ["no-cache", "no-store", "max-age=0", "max-age=5", "only-if-cached"]
            )
        stays = dice.uniform(0, 0.3) if dice.random() < 0.25 else 50
        url = self.proxy.url + path
        try:
            async with asyncio.timeout(stays):
                async with session.post(url, json=body, headers=headers) as answer:
                    data = await answer.read()
        except TimeoutError:
            self.seen["left"] += 1
            if stays == 50:
                self.wrong.append(f"no end: {path} {body} {headers}")
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            self.seen["cut"] += 1
        else:
            self.seen[f"{answer.status} {answer.headers.get('X-Cache')}"] += 1
            wrong = self._check(path, prompts, n, bool(body.get("stream")), answer.status, data)
            if wrong:
                status = answer.headers.get("Cache-Status")
                self.wrong.append(f"{wrong}: {path} {body} {headers} {status} {data[-500:]!r}")

    def _check(
        self, path: str, prompts: list[str], n: int, is_stream: bool, status: int, data: bytes
    ) -> str:
        """What is wrong with an answer, if something is."""
        if status != 200:
            return "" if status in EXCUSES else f"status {status}"
        try:
            found = told(path, data, is_stream)
        except (ValueError, LookupError, TypeError):
            return "" if b"not json" in data or b'"error"' in data else "not an answer"
        whole = {i: text for i, (text, reason) in found.items() if reason in ("length", "stop")}
        if any(index >= len(prompts) * n for index in found):
            return "too many samples"
        said = {index: prompts[index // n] for index in whole}
        for model in ["simulated", *MODELS]:
            if all(self.says(path, said[i], model) == text for i, text in whole.items()):
                return ""
        return "not what one model says"


def told(path: str, data: bytes, is_stream: bool) -> dict[int, tuple[str, str | None]]:
    """What each choice says, and how it has ended."""
    if not is_stream or data[:1] in b"[{":
        answer = json.loads(data)
        values = answer if isinstance(answer, list) else [answer]
        values = [{"index": i, **value} for i, value in enumerate(values)]
    else:
        *events, done, end = data.split(b"\n\n")
        if (done + b"\n\n", end) != (DONE, b""):
            raise ValueError
        values = [json.loads(event[6:]) for event in events]
    found: dict[int, tuple[str, str | None]] = {}
    for value in values:
        if "error" in value:
            raise ValueError(value)
        if path == GENERATE:
            found[value.get("index", 0)] = value["text"], ended(value)
            continue
        for choice in value["choices"]:
            text, reason = found.get(choice["index"], ("", None))
            message = choice.get("delta") or choice.get("message") or {}
            more = choice["text"] if path == COMPLETIONS else message.get("content")
            found[choice["index"]] = text + (more or ""), choice["finish_reason"] or reason
    return found


def ended(native: Any) -> str | None:
    reason = native["meta_info"]["finish_reason"]
    return reason and reason["type"]


def descriptors(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos(seed: int, start_proxy: StartProxy) -> None:
    """Nothing is answered wrong, and nothing is left behind when all have gone: no flight, waiter,
    stream or connection."""
    with running(Profile(tokens_per_second=300)) as upstream:
        proxy = start_proxy(upstream.url, "--poll-seconds", "0.5")
        post(proxy, GENERATE, greedy(GENERATE, "warm"))
        before = descriptors(proxy)
        chaos = Chaos(upstream, proxy, seed)
        asyncio.run(chaos.run(SECONDS))
        print(dict(chaos.seen))
        assert not chaos.wrong, "\n".join(chaos.wrong[:10])
        assert chaos.seen["200 HIT"]
        assert chaos.seen["200 MISS"]
        upstream.release()
        until(lambda: is_idle(proxy.stats()), 20)
        until(lambda: upstream.running == 0)
        # Connections to upstream are kept for a few seconds, and looked through when one is used.
        numbers = itertools.count()

        def is_swept() -> bool:
            post(proxy, GENERATE, greedy(GENERATE, f"sweep {next(numbers)}"))
            return descriptors(proxy) <= before + 3

        until(is_swept, 20)
        size = proxy.memory()
        model = requests.get(f"{upstream.url}/model_info", timeout=30).json()["model_path"]
        for path in (GENERATE, COMPLETIONS, CHAT):
            for prompt in PROMPTS:
                for _ in range(2):
                    answer = post(proxy, path, greedy(path, prompt))
                    assert told(path, answer.content, False)[0][0] == chaos.says(
                        path, prompt, model
                    )
                assert answer.headers["X-Cache"] == "HIT"
        assert "Traceback" not in proxy.log, proxy.log[-3000:]
        assert size < 400 << 20
