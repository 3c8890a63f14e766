"""A service with a server whose every answer the test gives, and what is asked of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sglang_cached_addon import dialects
from sglang_cached_addon.core.admission import Probe
from sglang_cached_addon.core.cache import Addition, Brought, Sample
from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.core.identity import UNKNOWN
from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.service import Service
from sglang_cached_addon.service.asking import Ask, Reply, Streamed
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Bypass, Hit
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.upstream import Upstream
from tests.upstream.scripted import (
    PROBE,
    Asked,
    AsyncTest,
    Kept,
    Script,
    Test,
    entering,
    serving,
    settled,
    until,
)

GENERATE, COMPLETIONS = "/generate", "/v1/completions"


@dataclass
class Got:
    """An answer, as a client has it."""

    kind: str
    status: int = 200
    reason: Reason | None = None
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    is_cut: bool = False
    places: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def texts(self) -> list[str]:
        natives = self.json if isinstance(self.json, list) else [self.json]
        return [native["text"] for native in natives]

    @property
    def brief(self) -> str:
        reason = f" {self.reason}" if self.reason else ""
        return f"{self.kind} {self.status}{reason}"


class Stage:
    """A service, and what is before and behind it."""

    def __init__(
        self,
        script: Script,
        store: Any = MemoryStore,
        kept: Kept | None = None,
        isolates: bool = False,
        **kwargs: Any,
    ) -> None:
        ids = itertools.count(1)
        self.script = script
        self.kept = kept or Kept()
        self.store = store() if isinstance(store, type) else store
        self.exchange = Exchange(dialects.installed(), self.store, lambda: f"{next(ids):032x}")
        self.upstream = Upstream(
            script.url,
            self.kept,
            is_offline=kwargs.get("mode") is Mode.OFFLINE,
            probes=lambda asker: (Probe(PROBE),),
            entered=lambda upstream: self.exchange.lookup.enter(
                upstream.model.fingerprint,
                upstream.model.epochs,
                upstream.model.identity.server if upstream.model.identity else UNKNOWN,
                upstream.model.version,
            ),
        )
        self.heads = CallHeads(isolates=isolates)
        self.service = Service(self.exchange, self.upstream, self.heads, **kwargs)
        self.counters = self.exchange.counters
        self.tasks: list[asyncio.Task[Any]] = []
        self.seen: list[bytes] = []
        """The events that any client has got."""

    async def settled(self) -> None:
        """Returns when what was answered is stored, or will not be."""
        await until(lambda: not self.service.flights.unconfirmed)

    # Clients

    def make(self, path: str, body: Any, headers: dict[str, str], **kwargs: Any) -> Ask:
        fields = {"content-type": "application/json", **headers}
        raw = {name.encode(): value.encode() for name, value in fields.items()}
        head = self.heads.read("POST", path, raw)
        return Ask(head, json.dumps(body).encode(), tuple(raw.items()), **kwargs)

    async def receive(self, ask: Ask) -> Any:
        answer = self.service.receive(ask)
        return await answer if isinstance(answer, Coroutine) else answer

    async def serve(self, ask: Ask) -> Got:
        """The whole way of a call."""
        got = await self._serve(ask)
        ask.settle(is_delivered=not got.is_cut)
        return got

    async def _serve(self, ask: Ask) -> Got:
        answer = await self.receive(ask)
        outcome = answer.outcome
        if isinstance(answer, Bypass):
            return Got("bypass", reason=outcome.reason)
        if isinstance(answer, Hit):
            return Got(outcome.kind, body=answer.body, places=outcome.places)
        if isinstance(answer, Reply):
            return Got(
                outcome.kind, answer.status, outcome.reason, answer.body, places=outcome.places
            )
        return await self.read(answer)

    async def read(self, answer: Streamed) -> Got:
        pieces: list[bytes] = []
        is_cut = is_whole = False
        try:
            async for some in answer.pieces:
                pieces += some
                self.seen += some
            is_whole = True
        except Cut:
            is_cut = True
        finally:
            answer.close(is_whole)
        outcome = answer.outcome
        body = b"".join(pieces)
        return Got(outcome.kind, 200, outcome.reason, body, pieces, is_cut)

    def ask(self, path: str, body: Any, key: str = "", **headers: str) -> asyncio.Task[Got]:
        """A client that waits for his answer."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["authorization"] = key
        task = asyncio.ensure_future(self.serve(self.make(path, body, headers)))
        self.tasks.append(task)
        return task

    def generate(self, text: Any, n: int = 1, key: str = "", **more: Any) -> asyncio.Task[Got]:
        body = {"text": text, "sampling_params": {"n": n}, **more}
        return self.ask(GENERATE, body, key)

    async def lead(self, *args: Any, **kwargs: Any) -> tuple[asyncio.Task[Got], Asked]:
        """A client whose call has come to upstream, and that call."""
        task = self.generate(*args, **kwargs)
        return task, await self.asked()

    async def stores(self, *args: Any, **kwargs: Any) -> Got:
        """A call whose answer is stored, and that answer."""
        task, asked = await self.lead(*args, **kwargs)
        self.generated(asked)
        got = await task
        await self.settled()
        return got

    # Upstream

    async def asked(self) -> Asked:
        """The next call that comes to upstream."""
        return await self.script.calls.get()

    @property
    def is_quiet(self) -> bool:
        return self.script.calls.empty()

    def generated(self, asked: Asked, version: str = "1", end: str | None = "stop") -> None:
        """Answers with samples whose texts are numbered."""
        body = asked.json
        batched = isinstance(body["text"], list)
        prompts = body["text"] if batched else [body["text"]]
        n = body["sampling_params"].get("n", 1)
        rids = body.get("rid", "r")
        natives = [
            {
                "text": f"{prompt} {next(self.script.numbers)}",
                "output_ids": [1],
                "meta_info": {
                    "id": rids[i // n] if isinstance(rids, list) else rids,
                    "finish_reason": {"type": end},
                    "prompt_tokens": 1,
                    "completion_tokens": 1,
                    "weight_version": version,
                },
            }
            for i, prompt in enumerate(p for p in prompts for _ in range(n))
        ]
        asked.answer(200, natives if batched or n > 1 else natives[0])

    async def waiting(self, count: int) -> None:
        await until(lambda: self.service.flights.waiting == count)

    @property
    def stored(self) -> int:
        return self.store.samples


@asynccontextmanager
async def standing(
    keys: set[str] | None = None, says: dict[str, Any] | None = None, **kwargs: Any
) -> AsyncIterator[Stage]:
    more = {} if says is None else {"says": says}
    async with serving(keys=keys, **more) as script:
        stage = Stage(script, **kwargs)
        try:
            yield stage
            await asyncio.gather(*stage.tasks, return_exceptions=True)
            await until(lambda: not len(stage.service.flights))
            assert stage.service.flights.waiting == 0
            assert not stage.service.aborts._named
        finally:
            for task in stage.tasks:
                task.cancel()
            stage.upstream.close()
            await settled()


def staged(**kwargs: Any) -> Callable[[AsyncTest], Test]:
    """A test with a stage of its own."""
    return entering(lambda: standing(**kwargs), "stage")


async def briefs(*tasks: asyncio.Task[Got]) -> list[str]:
    return [got.brief for got in await asyncio.gather(*tasks)]


# One call


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "i", "choices": [choice]}).encode()


USAGE = b'data: {"id":"i","choices":[],"usage":{"completion_tokens":2}}\n\n'


DONE = b"data: [DONE]\n\n"


WHOLE = [chunk("a"), chunk("b", "stop"), USAGE, DONE]


STREAM = {"prompt": "a", "stream": True}


COUNTED = {**STREAM, "stream_options": {"include_usage": True}}


async def begun(stage: Stage, body: Any = COUNTED) -> tuple[asyncio.Task[Got], Asked]:
    task = stage.ask(COMPLETIONS, body)
    asked = await stage.asked()
    asked.begin()
    asked.send(WHOLE[0])
    return task, asked


async def stored(stage: Stage) -> None:
    """A stream that is stored."""
    task, asked = await begun(stage)
    finish(asked)
    await task
    await stage.settled()


def finish(asked: Asked) -> None:
    for event in WHOLE[1:]:
        asked.send(event)
    asked.end()


async def changed(stage: Stage) -> None:
    """An update passes through."""
    update = stage.upstream.change(Change.MODEL, None)
    await update.announced
    update.sent()
    update.ended(200)
    await until(lambda: not stage.kept.document["unsettled"])


class Lent:
    """A lease, which counts how often it is given back."""

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Far(MemoryStore):
    """A store that says what the test says when something is to be brought."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: asyncio.Queue[Look] = asyncio.Queue()

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        look = Look(dict(needs), claims)
        self.looks.put_nowait(look)
        return look.answer


@dataclass
class Look:
    needs: dict[bytes, int]
    claims: bool
    answer: asyncio.Future[Brought] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def found(self, store: Far, *texts: str, **kwargs: Any) -> None:
        """Ends it, with native answers of one pool."""
        (key,) = self.needs
        answers = [Sample(json.dumps({"text": t, "meta_info": {}}).encode(), 1.0, 2.0, 3)
                   for t in texts]  # fmt: skip
        store.append(Addition(key, "generate", b"", answers))
        self.answer.set_result(Brought(**kwargs))
