"""Who is behind the URL, whether it answers, and whom it lets ask.

Asks upstream's own routes (`/model_info`, `/server_info`, `/v1/models`) for its identity: when
it is first needed, while there is traffic, and after each answer that is to be stored. A hit
is given only while the identity is fresh and its client admitted, both of which `admits` tells
without waiting. What is known goes to a small file, so that it outlives the process; no
credential and nothing of `/server_info` but its digest does.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from enum import Enum, StrEnum
from typing import Any, Protocol

import orjson

from sglang_cached_addon import admission, identity
from sglang_cached_addon.admission import Admission
from sglang_cached_addon.client import Answer, Broken, Client, Headers, Unreachable
from sglang_cached_addon.identity import Change, Epochs, Identity
from sglang_cached_addon.policy import Reason

logger = logging.getLogger("sglang_cached_addon")

INTERVAL_SECONDS = 5.0
"""How long what upstream said of its model is believed."""

DOWN_SECONDS = 1.0
"""How long it is believed that upstream is down."""

EARLY = 0.6
"""At this share of the interval upstream is asked again, so that no hit has to wait for it."""

BREATH_SECONDS = 0.005
"""At least so long between two looks at who upstream is: what begins or ends in between shares
one."""

PROBE_SECONDS = 2.0
"""How long upstream may take to say who it is, where a client waits for it."""

CONFIRM_SECONDS = 30.0
"""The same, where only the store waits."""

MODELS = 1000
"""Names of models that are kept."""

# Routes that say who answers, in the order in which they are tried. The second is what older
# versions have, the third what anything that speaks OpenAI's API has.
_INFO_PATHS = ("/model_info", "/get_model_info", "/v1/models")
_SERVER_PATHS = {"/model_info": "/server_info", "/get_model_info": "/get_server_info"}

# No server takes this for a request, and none reads it before it has looked at the credential.
_NO_BODY = b"{"
_JSON = (b"Content-Type", b"application/json")


class State(StrEnum):
    """What is known of the upstream."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Memory(Protocol):
    """Where what is known outlives the process."""

    def load(self) -> dict[str, Any]: ...

    def save(self, document: dict[str, Any]) -> None: ...


class _Verdict(Enum):
    """What upstream says when it is asked who it is."""

    KNOWN = "its identity"
    REFUSED = "it does not tell this credential"
    NAMELESS = "it has no such route"
    TROUBLED = "it answers, but not that"
    SILENT = "nothing"


class Upstream:
    """The server that misses go to."""

    def __init__(
        self,
        url: str,
        memory: Memory,
        *,
        tls: ssl.SSLContext | None = None,
        keeps_host: bool = False,
        interval: float = INTERVAL_SECONDS,
        is_offline: bool = False,
        salt: int = 0,
        entered: Callable[[Upstream], object] = lambda upstream: None,
    ) -> None:
        """`entered` is told whenever the model behind is, or may be, another one. `salt` as
        `Epochs` has it."""
        self.url = url
        self.state = State.UNKNOWN
        self.client = Client(url, tls=tls, keeps_host=keeps_host)
        """For anything that is not about its identity."""
        self.identity: Identity | None = None
        self.epochs = Epochs(salt=salt)
        self.turn = 0
        """Rises whenever the model may have been another one in between."""
        self.models: dict[str, str] = {}
        """The names of all models that were met, by fingerprint."""
        self._memory = memory
        self._interval = interval
        self._is_offline = is_offline
        self._entered = entered
        self._admission = Admission()
        # One connection, if it is not hung up on: that it lives on shows that upstream does.
        self._probe = Client(url, tls=tls)
        self._lock = asyncio.Lock()
        self._info_path: str | None = None
        self._said: tuple[int, bytes] | None = None
        """By which connection, and in which words, upstream last said who it is."""
        self._fresh_until = float("inf") if is_offline else float("-inf")
        self._ask_at = self._fresh_until
        self._watched_at = float("-inf")
        self._seen_at = float("-inf")
        self._held, self._held_until = _Verdict.NAMELESS, float("-inf")
        """What it said instead of its name, and how long it is not asked again."""
        self._shown: Headers = ()
        """A credential that it accepts, to ask in the background; in memory only."""
        self._was_silent = False
        self._was_open: bool | None = None
        """As `Admission.is_open`, from another process."""
        self._tries_route = False
        """What it says of itself is open to more than its other routes are."""
        self._changing = 0
        """Requests under way that change the model."""
        self._is_unsettled = False
        """One has ended, and what it left behind has no number yet."""
        self._writing = asyncio.Lock()
        self._learning: asyncio.Task[_Verdict] | None = None
        self._confirming: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[bool] | None = None
        self._asker: Headers = ()
        self._trying: dict[bytes, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recall()

    @property
    def fingerprint(self) -> str:
        """Of the model behind, as far as it is known; part of each key."""
        return self.epochs.fingerprint(self.identity) if self.identity else ""

    @property
    def asks_keys(self) -> bool | None:
        """Whether it lets only some credentials ask; None: not known."""
        is_open = self._admission.is_open
        return None if is_open is None else not is_open

    # Who may be answered from the store. Neither of these waits.

    def admits(self, credential: bytes, now: float) -> bool:
        """Whether a hit can be given to a client: upstream has said lately who it is, and has
        accepted the credential. `now` is monotonic, in seconds."""
        if now >= self._ask_at and not self._learning:
            self._spawn(self._learn_soon(self._shown))
        if self._is_offline:
            return True
        is_down = self.state is State.DOWN
        return now < self._fresh_until and self._admission.admits(credential, now, is_down=is_down)

    def heard(self, credential: bytes, status: int, now: float) -> None:
        """Notes the status of upstream's answer to a client's call."""
        self.seen(True, now)
        if status in _REFUSALS:
            self._admission.forget(credential)
            if self._admission.is_open:
                # What it lets anyone see of itself says nothing of its other routes.
                self._tries_route, self._admission.is_open = True, None
        elif status == 200:
            self._admission.accept(credential, now)

    def seen(self, is_up: bool, now: float) -> None:
        """Notes what traffic showed."""
        self.state = State.UP if is_up else State.DOWN
        self._seen_at = now

    # Who is asked, where something waits for it

    async def admit(self, shown: Headers, route: tuple[str, str]) -> Reason | None:
        """Asks upstream what `admits` does not know; why a call is to be left to it, if it is.
        `shown` are the header fields that the credential is made of."""
        verdict = None
        credential = admission.credential(dict(shown))
        if time.monotonic() >= self._fresh_until:
            verdict = await self._learn_soon(shown)
        if self.admits(credential, time.monotonic()) and self.identity:
            self._shown = shown
            return None
        if verdict is _Verdict.REFUSED:
            return Reason.UNAUTHORIZED
        if self.identity is None or time.monotonic() >= self._fresh_until:
            return Reason.NO_MODEL
        if self.state is State.DOWN or not await self._try_once(credential, shown, route):
            return Reason.UNAUTHORIZED
        self._shown = shown
        return None

    def watch(self, shown: Headers) -> None:
        """A fetch begins: has upstream asked who it is meanwhile, so that a model that comes and
        goes while the fetch is under way does not go unseen."""
        if not self._is_offline:
            self._look(shown)

    def doubt(self, shown: Headers) -> None:
        """An answer showed that upstream may be another one."""
        self._spawn(self._learn_soon(shown))

    async def confirm(self, turn: int, shown: Headers) -> Reason | None:
        """Why an answer that has come must not be stored: None once upstream, asked after it came,
        has said that it still is what it was in that turn."""
        if turn != self.turn:
            return Reason.MODEL_CHANGED
        is_known = await asyncio.shield(self._look(shown))
        if turn != self.turn or self._changing:
            return Reason.MODEL_CHANGED
        return None if is_known else Reason.UNCONFIRMED

    async def check(self, now: float) -> State:
        """Whether it answers, asked for if nothing was seen of it for a while."""
        if now - self._seen_at > self._interval and not self._is_offline:
            # It may have to wait for a look at upstream that has more patience.
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._learn_soon(())
        return self.state

    # Requests that change the model

    async def change(self, change: Change, adapter: str | None) -> Callable[[int | None], None]:
        """A request that changes the model is about to be passed on. What is returned is to be told
        the status of its answer, or None if there was none."""
        mark, was_unsettled = self.epochs.mark(), self._is_unsettled

        def touch() -> None:
            if change is Change.ADAPTER and adapter is not None:
                self.epochs.raise_adapter(adapter)
                return
            if self.identity:
                self.epochs.raise_model(self.identity.digest)
            # Whatever model is there in the end gets a number, too, as soon as its name is known.
            self._is_unsettled = True

        def ended(status: int | None) -> None:
            self._changing -= 1
            if status in _NO_CHANGE and self.epochs.restore(mark):
                self._is_unsettled = was_unsettled
            else:
                touch()
                self._fresh_until, self._said = float("-inf"), None
            self._enter()
            self._spawn(self._remember())

        self._changing += 1
        touch()
        self._enter()
        await self._remember()
        return ended

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`."""
        before = self.fingerprint, self.epochs.adapters_token
        if not self.epochs.merge(known, theirs):
            return
        if before != (self.fingerprint, self.epochs.adapters_token):
            if not self._is_offline:  # upstream may have another name by now
                self._fresh_until, self._said = float("-inf"), None
            self._enter()
        self._spawn(self._remember())

    # Asking

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn_soon(self, shown: Headers) -> _Verdict:
        """Asks upstream who it is; those who want to know at the same time share the answer, but
        for a refusal, which is only for who showed that credential."""
        while self._learning:
            verdict = await asyncio.shield(self._learning)
            if verdict is not _Verdict.REFUSED:
                return verdict
        if time.monotonic() < self._held_until:
            return self._held
        learning = self._learning = asyncio.ensure_future(self._learn(shown))

        def clear(_: object) -> None:
            self._learning = None

        learning.add_done_callback(clear)  # before any who waits goes on
        return await asyncio.shield(learning)

    async def _learn(self, shown: Headers) -> _Verdict:
        async with self._lock:
            verdict = await self._identify(shown, PROBE_SECONDS)
        if verdict is _Verdict.KNOWN and self._admission.is_open is None:
            await self._find_out_whether_open(shown)
        return verdict

    async def _identify(self, shown: Headers, seconds: float) -> _Verdict:
        """Asks, and notes what upstream says."""
        credential = admission.credential(dict(shown))
        began = time.monotonic()
        self._ask_at = began + self._interval  # until more is known
        try:
            async with asyncio.timeout(seconds):
                verdict, found, said = await self._ask(shown)
        except (Unreachable, Broken, TimeoutError):
            verdict, found, said = _Verdict.SILENT, None, None
        now = time.monotonic()
        self.seen(verdict is not _Verdict.SILENT, now)
        if verdict is _Verdict.KNOWN and found:
            self._know(found, began)
            self._said = said
        elif verdict is _Verdict.SILENT:
            # What was known goes on being served.
            self._was_silent = True
            self._fresh_until, self._ask_at = now + self._interval, now + DOWN_SECONDS
            if self._admission.is_open is None:
                self._admission.is_open = self._was_open
        elif verdict is _Verdict.REFUSED:
            self._admission.forget(credential)
            if not shown:
                self._admission.is_open = False
        else:
            self._held, self._held_until = verdict, now + DOWN_SECONDS
            if verdict is _Verdict.NAMELESS and self.identity:
                self.identity = None
                self._enter()
        if verdict is _Verdict.KNOWN and shown and not self._tries_route:
            self._admission.accept(credential, now)
        return verdict

    async def _ask(
        self, shown: Headers
    ) -> tuple[_Verdict, Identity | None, tuple[int, bytes] | None]:
        """One round of questions, on the one connection."""
        paths = (self._info_path,) if self._info_path else _INFO_PATHS
        for path in paths:
            answer = await self._probe.ask("GET", path, shown)
            if answer.status != 404:
                break
        else:
            self._info_path = None
            return _Verdict.NAMELESS, None, None
        if answer.status in _REFUSALS:
            return _Verdict.REFUSED, None, None
        if answer.status != 200:
            return _Verdict.TROUBLED, None, None
        self._info_path = path
        server = None
        if path in _SERVER_PATHS:
            more = await self._probe.ask("GET", _SERVER_PATHS[path], shown)
            if more.status == 200:
                server = _document(more)
            elif more.status not in (404, *_REFUSALS):
                return _Verdict.TROUBLED, None, None
            info, models = _document(answer), None
        else:
            info, models = None, _document(answer)
        found = identity.identify(info, server, models)
        verdict = _Verdict.KNOWN if found else _Verdict.TROUBLED
        return verdict, found, (answer.connection, answer.body)

    def _know(self, found: Identity, began: float) -> None:
        """Upstream has said who it is."""
        before, self.identity = self.identity, found
        is_restarted = before is not None and before.incarnation != found.incarnation
        if is_restarted:
            self.epochs.restarted(found)
        if is_restarted or self._was_silent:
            # Another process may know other keys.
            self._admission.forget_all()
        self._was_silent = False
        is_settled = not self._is_unsettled or self._changing > 0
        if not is_settled:
            self.epochs.raise_model(found.digest)
            self._is_unsettled = False
        if before != found or not is_settled:
            self._enter()
            self._spawn(self._remember())
        self._fresh_until = began + self._interval
        self._ask_at = began + self._interval * EARLY

    def _enter(self) -> None:
        self.turn += 1
        if self.identity:
            self.models[self.fingerprint] = self.identity.model
            while len(self.models) > MODELS:
                del self.models[next(iter(self.models))]
        self._entered(self)

    # Confirming

    def _look(self, shown: Headers) -> asyncio.Future[bool]:
        """Whether upstream, asked after this was called, says who it is. All who ask while an
        answer is on its way share the next one."""
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            self._asker = shown
        # mitmproxy has tasks begin at once, so that it may have been taken up when this returns.
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.ensure_future(self._confirm_all())
        return waiting

    async def _confirm_all(self) -> None:
        while self._waiting:
            pause = self._watched_at + BREATH_SECONDS - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            waiting, self._waiting = self._waiting, None
            is_known = False
            try:
                is_known = await self._is_same(self._asker)
            except Exception:
                logger.exception("sglang-cached: the model could not be confirmed")
            waiting.set_result(is_known)
        self._confirming = None

    async def _is_same(self, shown: Headers) -> bool:
        """One cheap question, where the connection shows that upstream is the same process."""
        async with self._lock:
            self._watched_at = time.monotonic()
            if self._said and self._info_path in _SERVER_PATHS:
                try:
                    async with asyncio.timeout(CONFIRM_SECONDS):
                        answer = await self._probe.ask("GET", self._info_path, shown)
                except (Unreachable, Broken, TimeoutError):
                    self.seen(False, time.monotonic())
                    self._said = None
                    return False
                if answer.status == 200 and (answer.connection, answer.body) == self._said:
                    return True
            return await self._identify(shown, CONFIRM_SECONDS) is _Verdict.KNOWN

    # Admitting

    async def _find_out_whether_open(self, shown: Headers) -> None:
        """Whether upstream asks for keys at all."""
        if self._tries_route or self._info_path not in _SERVER_PATHS:
            self._tries_route = True
            is_open = await self._is_accepted((), ("POST", "/v1/chat/completions"))
        elif shown:
            is_open = await self._is_accepted((), ("GET", self._info_path))
        else:
            is_open = True  # as it has just shown
        if is_open is not None and is_open != self._admission.is_open:
            self._was_open = self._admission.is_open = is_open
            self._spawn(self._remember())

    async def _try_once(self, credential: bytes, shown: Headers, route: tuple[str, str]) -> bool:
        """Whether upstream accepts a credential; those who show the same one share the answer."""
        task = self._trying.get(credential)
        if task is None:
            task = asyncio.ensure_future(self._try(credential, shown, route))
            self._trying[credential] = task
            task.add_done_callback(lambda _: self._trying.pop(credential, None))
        return await asyncio.shield(task)

    async def _try(self, credential: bytes, shown: Headers, route: tuple[str, str]) -> bool:
        if self._admission.is_open is None:
            await self._find_out_whether_open(shown)
            if self._admission.is_open:
                return True
        if not self._tries_route and self._info_path:
            route = ("GET", self._info_path)
        if not await self._is_accepted(shown, route):
            self._admission.forget(credential)
            return False
        self._admission.accept(credential, time.monotonic())
        return True

    async def _is_accepted(self, shown: Headers, route: tuple[str, str]) -> bool | None:
        """Whether a route is open to a credential; None if upstream does not say."""
        method, path = route
        body, fields = (b"", shown) if method == "GET" else (_NO_BODY, (*shown, _JSON))
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                answer = await self.client.ask(method, path, fields, body)
        except (Unreachable, Broken, TimeoutError):
            return None
        if method == "GET" and answer.status != 200 and answer.status not in _REFUSALS:
            return None
        return answer.status not in _REFUSALS

    # What outlives the process

    def _recall(self) -> None:
        known = self._memory.load()
        try:
            if "epochs" in known:
                self.epochs = replace(Epochs.from_json(known["epochs"]), salt=self.epochs.salt)
            self._is_unsettled = bool(known.get("unsettled"))
            self.models = {str(k): str(v) for k, v in dict(known.get("models", {})).items()}
            if known.get("identity") and (self._is_offline or known.get("url") == self.url):
                self.identity = Identity(**known["identity"])
                self._was_open = known.get("asks_keys") is False
        except (TypeError, ValueError, AttributeError) as e:
            raise ValueError(f"what was known of the upstream cannot be read: {e}") from e
        self._enter()

    async def _remember(self) -> None:
        """Writes down what is known."""
        found = self.identity
        document = {
            "url": self.url,
            "identity": asdict(found) if found else None,
            "asks_keys": self.asks_keys,
            "epochs": self.epochs.as_json(),
            "unsettled": self._is_unsettled,
            "models": self.models,
        }
        async with self._writing:
            try:
                await asyncio.to_thread(self._memory.save, document)
            except OSError as e:
                logger.warning("sglang-cached: %s", e)

    async def post(self, path: str, body: bytes, fields: Headers) -> None:
        """Sends a request whose answer nobody waits for; failures are upstream's to log."""
        with suppress(Unreachable, Broken, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                await self.client.ask("POST", path, fields, body)

    def close(self) -> None:
        """Hangs up."""
        for task in self._tasks:
            task.cancel()
        self.client.close()
        self._probe.close()


_REFUSALS = (401, 403)

# With these, nothing was changed.
_NO_CHANGE = (401, 403, 404, 405)


def _document(answer: Answer) -> Any:
    try:
        return orjson.loads(answer.body)
    except ValueError:
        return None
