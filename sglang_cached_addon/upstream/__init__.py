"""Who is behind the URL, whether it answers, and whom it lets ask.

Puts together what the modules beside it know: what upstream says when it is asked (`asking`), how
long that is believed (`belief`), which model that makes (`model`), which requests change it
(`changes`), and whom it accepts (`gate`). Upstream is asked beside the calls: while there are
some, for ten minutes after the last one, and after each answer that is to be stored.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.policy import Reason, Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.asking import Questions, Said, Verdict
from sglang_cached_addon.upstream.belief import RETRY_SECONDS, Belief, Phase
from sglang_cached_addon.upstream.changes import Ending, Update, Updates
from sglang_cached_addon.upstream.gate import Gate, Probes
from sglang_cached_addon.upstream.model import Memory, Model
from sglang_cached_addon.upstream.single import Following, Single
from sglang_cached_addon.wire.client import Ask, Broken, Client, Headers, Unreachable

__all__ = ["Memory", "State", "Update", "Upstream"]

T = TypeVar("T")

INTERVAL_SECONDS = 5.0
"""How long what upstream said of its model is believed before it is asked again."""

FIRST_SECONDS = 2.0
"""How long a call waits for upstream to say who it is, where it never has."""

PATIENCE_SECONDS = 30.0
"""How long upstream may take to say who it is, where no call waits for it."""

BREATH_SECONDS = 0.005
"""At least so long between two questions that answers wait for: those that come in between share
one."""

REST_SECONDS = 0.05
"""At least so long between two looks at what is due."""

TICK_SECONDS = 5.0
"""How often it is looked whether acceptances are to be renewed."""


class State(StrEnum):
    """What is known of the upstream."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Greeting:
    """What upstream has said of itself on a connection that samples come on."""

    said: Said
    asked_on: int
    """The number of the connection on which it is asked otherwise, if the same process is at both;
    else 0."""


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
        restart: Restart = Restart.SAME,
        salt: int = 0,
        entered: Callable[[Upstream], object] = lambda upstream: None,
        probes: Probes = lambda asker: (),
    ) -> None:
        """`entered` and `salt` are as `Model` has them, `probes` as `Gate`."""
        self.url = url
        self.state = State.UNKNOWN
        self.client = Client(
            url, tls=tls, keeps_host=keeps_host, greet=self._greet, is_lasting=self._is_lasting
        )
        """For anything that is not about its identity."""
        self._is_offline = is_offline
        self._was_down = False
        """Another process may answer when it is back."""
        self._told: Headers = ()
        """The credential with which upstream last named its model; in memory only."""
        self._untold, self._untold_until = Verdict.NAMELESS, float("-inf")
        """What it said instead of its name, and how long no call asks again."""
        self._questions = Questions(url, tls)
        self._learning: Single[Said] = Single()
        self._confirming: Following[bool] = Following(BREATH_SECONDS)
        self._keeping: Single[None] = Single()
        self._updates = Updates(self._updated)
        self._model = Model(
            url,
            memory,
            is_offline=is_offline,
            restart=restart,
            salt=salt,
            entered=lambda: entered(self),
        )
        self._gate = Gate(Client(url, tls=tls), probes, self._model.opened)
        for asker in self._model.open:
            self._gate.admission.recall(asker)
        self._belief = Belief(interval, is_known=self.identity is not None)
        self._model.enter()

    # What is known

    @property
    def identity(self) -> Identity | None:
        return self._model.identity

    @property
    def epochs(self) -> Epochs:
        return self._model.epochs

    @property
    def model_version(self) -> int:
        """Rises whenever the model may have been another one in between."""
        return self._model.version

    @property
    def models(self) -> dict[str, str]:
        """The names of all models that were met, by fingerprint."""
        return self._model.names

    @property
    def fingerprint(self) -> str:
        """Of the model behind, as far as it is known; part of each key."""
        return self._model.fingerprint

    @property
    def asks_keys(self) -> bool | None:
        """Whether it lets only some credentials ask; None: not known."""
        return self._gate.asks_keys

    # Who may be answered from the store. None of these waits.

    def admits(self, asker: Asker, now: float) -> bool:
        """Whether an asker can be given what is stored. `now` is monotonic, in seconds."""
        if self._is_offline:
            return True
        self._belief.call(now)
        if not self._keeping.is_busy:
            self._belief.wake(now)
            self._keeping.join(self._keep)
        return self._belief.phase(now) is Phase.BELIEVED and self._accepts(asker, now)

    def _accepts(self, asker: Asker, now: float) -> bool:
        is_down = self.state is State.DOWN
        return self._gate.admission.admits(asker, now, is_down=is_down)

    def heard(self, asker: Asker, shown: Headers, status: int, now: float) -> None:
        """Notes the status of upstream's answer to a client's call; `shown` as `Gate` has it."""
        self.seen(True)
        self._gate.heard(asker, shown, status, now)

    def seen(self, is_up: bool) -> None:
        """Notes what traffic showed."""
        self.state = State.UP if is_up else State.DOWN

    def look(self, now: float) -> State:
        """Whether it answered when it was last asked; it is asked again, beside, if that is old."""
        if not self._is_offline and self._belief.is_old(now) and not self._learning.is_busy:
            self._learning.join(self._poll)
        return self.state

    # Who is asked, where a call waits for it

    async def admit(self, asker: Asker, shown: Headers, routed: Headers = ()) -> Reason | None:
        """Asks upstream what `admits` does not know; why a call is to be left to it, if it is.
        `shown` are the header fields that the credential is made of, `routed` those of the asker's
        `routing`."""
        now = time.monotonic()
        phase = self._belief.phase(now)
        if phase is Phase.WAKING:
            # Its former word will do; it only gets the chance to say something else.
            await self._wait(self._learning.join(self._poll), self._belief.patience(now))
        elif phase is Phase.UNKNOWN and (reason := await self._learn(shown)):
            return reason
        if not self._accepts(asker, time.monotonic()):
            await self._gate.tries(asker, (*shown, *routed))
        return None if self._accepts(asker, time.monotonic()) else Reason.UNAUTHORIZED

    async def _learn(self, shown: Headers) -> Reason | None:
        """Asks upstream who it is, for a call that has to know; why it is left to upstream, where
        that does not say in time."""
        verdict = await self._wait(self._ask(shown), FIRST_SECONDS)
        if self._belief.phase(time.monotonic()) is not Phase.UNKNOWN:
            return None
        return Reason.UNAUTHORIZED if verdict is Verdict.REFUSED else Reason.NO_MODEL

    async def _ask(self, shown: Headers) -> Verdict:
        """Asks upstream who it is; those who want to know at the same time share the answer, but
        for a refusal, which is only for who showed that credential."""
        is_own = False

        async def ask() -> Said:
            nonlocal is_own
            is_own = True
            return await self._round(shown)

        while True:
            if not self._learning.is_busy and time.monotonic() < self._untold_until:
                return self._untold
            said = await self._learning.join(ask)
            if is_own or said.verdict is not Verdict.REFUSED:
                return said.verdict

    async def check(self) -> State:
        """Whether it answers, asked for now; not waited for long."""
        if not self._is_offline:
            await self._wait(self._learning.join(self._poll), FIRST_SECONDS)
        return self.state

    @staticmethod
    async def _wait(asked: Awaitable[T], seconds: float) -> T | None:
        """What comes of it, or None if that takes longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await asked
        return None

    # Asking

    async def _keep(self) -> None:
        """Asks again and again, beside the calls, until there was none for a while."""
        while not self._belief.is_pausing(now := time.monotonic()):
            if now >= self._belief.ask_at and not self._learning.is_busy:
                self._learning.join(self._poll)
            self._gate.renew(now)
            until_due = max(0.0, self._belief.ask_at - now)
            # Not oftener than that, though a slow upstream has not yet answered what is due.
            await asyncio.sleep(min(max(until_due, REST_SECONDS), TICK_SECONDS))

    async def _poll(self) -> Said:
        """One round of questions that no call asks for, with a credential that may be told."""
        said = Said(Verdict.REFUSED)
        for shown in dict.fromkeys((self._told, self._gate.latest, ())):
            said = await self._round(shown)
            if said.verdict is not Verdict.REFUSED:
                return said
        self._belief.refused(time.monotonic())
        return said

    async def _round(self, shown: Headers) -> Said:
        while True:
            began = time.monotonic()
            self._belief.asking(began)
            said = await self._questions.round(shown, PATIENCE_SECONDS)
            if not self._belief.is_late(began):
                self._hear(said, shown)
                return said

    def _hear(self, said: Said, shown: Headers) -> None:
        """Takes what upstream has said, or that it has said nothing."""
        now = time.monotonic()
        match said.verdict:
            case Verdict.KNOWN:
                self._told = shown
                self._know(said)
                return
            case Verdict.DOWN:
                self._was_down = True
                self._belief.unsaid(now)
            case Verdict.SLOW:
                self._belief.unsaid(now)
            case Verdict.TROUBLED:
                # As a balancer says it while a process is started anew behind it.
                self._questions.forget()
                self._belief.unsaid(now)
            case Verdict.NAMELESS:
                self._belief.nameless(now)
                self._model.unnamed()
            case Verdict.REFUSED:
                self.state = State.UP
                return
        self.state = _STATES[said.verdict]
        self._untold, self._untold_until = said.verdict, now + RETRY_SECONDS

    def _know(self, said: Said) -> None:
        assert said.identity
        self.state = State.UP
        is_restarted = self._model.named(said.identity)
        if is_restarted or self._was_down:
            # Another process may know other keys.
            self._gate.forget_all()
        self._was_down = False
        self._belief.confirmed(said.asked_at)

    # Answers that are to be stored

    def watch(self, shown: Headers) -> None:
        """A fetch begins: has upstream asked who it is meanwhile, so that a model that comes and
        goes while the fetch is under way does not go unseen."""
        if not self._is_offline:
            self._confirming.join(lambda: self._is_known(shown))

    def doubt(self) -> None:
        """Something showed that upstream may be another one."""
        self._questions.forget()
        if not self._is_offline:
            self._learning.join(self._poll)

    async def confirm(
        self,
        model_version: int,
        shown: Headers,
        greeting: asyncio.Future[Greeting | None] | None = None,
    ) -> Reason | None:
        """Why an answer that has come must not be stored: None once upstream, asked after it came,
        has said that it still is the model that it was in this `model_version`. `greeting` is what
        it says on the connection of that answer, if it can be asked there: behind one URL there may
        be several servers."""
        if model_version != self.model_version:
            return Reason.MODEL_CHANGED
        is_known = await self._confirming.join(lambda: self._is_known(shown))
        greeted = await asyncio.shield(greeting) if greeting else None
        await self._wait(self._updates.quiet(), PATIENCE_SECONDS)
        if model_version != self.model_version or self._updates.is_changing:
            return Reason.MODEL_CHANGED
        if greeted and not self._is_lasting(greeted):
            theirs, ours = greeted.said.identity, self.identity
            if theirs and ours and _is_other(theirs, ours, is_former=greeted.asked_on != 0):
                self.doubt()
                return Reason.MODEL_CHANGED
            is_known = is_known and theirs is not None
        return None if is_known else Reason.UNCONFIRMED

    async def _greet(self, ask: Ask, former: Greeting | None) -> Greeting:
        """Asks upstream who it is on a connection that samples come on."""
        is_new = former is None
        said = await self._questions.on(ask, self._told, PATIENCE_SECONDS, is_new=is_new)
        found, ours = said.identity, self.identity
        if not (found and ours and found.incarnation and found.incarnation == ours.incarnation):
            return Greeting(said, 0)
        if found != ours and not self._belief.is_late(said.asked_at):
            # The process is the one that is asked otherwise, and has another model by now.
            self._questions.forget()
            self._hear(said, self._told)
        return Greeting(said, self._questions.connection)

    def _is_lasting(self, greeting: Greeting) -> bool:
        """Whether the process on that connection is the one that is asked otherwise, so that what
        it says there holds here."""
        return greeting.asked_on != 0 and greeting.asked_on == self._questions.connection

    async def _is_known(self, shown: Headers) -> bool:
        """Whether upstream says who it is, asked with a client's credential, or else with the one
        with which it was told before."""
        began, said = time.monotonic(), Said(Verdict.REFUSED)
        for one in dict.fromkeys((shown, self._told)):
            said = await self._questions.again(one, PATIENCE_SECONDS)
            if self._belief.is_late(began):
                return False
            if said.verdict is Verdict.NAMELESS and one != self._told:
                continue  # to this credential, as it seems
            if said.verdict is not Verdict.REFUSED:
                self._hear(said, one)
                break
        return said.verdict is Verdict.KNOWN

    # Requests that change the model

    def change(self, change: Change, adapter: str | None) -> Update:
        """A request that may change the model is about to be passed on; what is returned is to be
        told of its way."""
        return self._updates.begin(change, adapter, self._model.announced())

    def _updated(self, update: Update, what: Ending) -> None:
        if what is Ending.WITHOUT_EFFECT:
            self._model.without_effect()
            return
        if self._model.changed(update):
            self._belief.doubted(time.monotonic())
        self.doubt()

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`."""
        if self._model.adopt(known, theirs):
            # It may have another name by now.
            self._belief.doubted(time.monotonic())
            self.doubt()

    async def post(self, path: str, body: bytes, fields: Headers) -> None:
        """Sends a request whose answer nobody waits for; failures are upstream's to log."""
        with suppress(Unreachable, Broken, TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                await self.client.ask("POST", path, fields, body)

    def close(self) -> None:
        """Hangs up."""
        for work in (self._keeping, self._learning, self._confirming):
            work.cancel()
        self._model.close()
        self._gate.close()
        self.client.close()
        self._questions.close()


def _is_other(theirs: Identity, ours: Identity, *, is_former: bool) -> bool:
    """Whether an answer may be of another model than ours. `is_former`: what its server says may be
    from before the answer, and counts as long as the same process is asked otherwise."""
    is_another = theirs.incarnation != ours.incarnation
    return theirs.digest != ours.digest or (is_former and is_another)


_STATES = {
    Verdict.NAMELESS: State.UP,
    Verdict.TROUBLED: State.UP,
    Verdict.SLOW: State.UNKNOWN,
    Verdict.DOWN: State.DOWN,
}
