"""What the fast lane and the hooks share: the open cache, the settings of now, and the log."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from sglang_cached_addon import dialects
from sglang_cached_addon.admin import history
from sglang_cached_addon.admin.history import History
from sglang_cached_addon.admin.reports import Reports
from sglang_cached_addon.assembly import Parts
from sglang_cached_addon.core.log_line import AsJson, Ended, LogFormat
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.core.request_ids import Ids
from sglang_cached_addon.core.timings import Timings
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.proxy.every import Every
from sglang_cached_addon.service.asking import Answer, Ask
from sglang_cached_addon.service.findings import Bypass
from sglang_cached_addon.settings import Settings

requests = logging.getLogger("sglang_cached_addon.requests")
"""Has a line for each request; those of others are of its parent."""

PASSED_ON = Bypass(Outcome(Kind.BYPASS, reason=Reason.ROUTE))
"""What becomes of a call where there is no cache, or where it fails: upstream gets it."""

DELAY_SECONDS = 0.25
"""How often it is looked how late the event loop is."""

OTHER = "other"
"""Stands for the dialect of requests that are none of samples."""

Receive = Callable[[Ask], Answer | Coroutine[Any, Any, Answer]]
"""What takes a call, and answers it."""


def _pass_on(ask: Ask) -> Answer:
    """What takes calls where there is no cache."""
    return PASSED_ON


class Desk:
    """Takes the calls of both transports to the open cache."""

    def __init__(self, lane_off: Callable[[], str] = str) -> None:
        """`lane_off` gives the reason why the fast lane is off; an empty one where it is not."""
        self._lane_off = lane_off
        self.settings: Settings | None = None
        """The settings of now; None before mitmproxy has told them."""
        self.parts: Parts | None = None
        """The cache, while it is open."""
        self.receive: Receive = _pass_on
        """As `Service.receive`."""
        self._dialects = {path: found.name for (_, path), found in dialects.installed().items()}
        self.ids = Ids(secrets.token_hex(4))
        """Those of requests whose clients give them none."""
        self.timings = Timings()
        """How long answers took."""
        self._hits = {p: self.timings.of(name, Kind.HIT) for p, name in self._dialects.items()}
        """Those of hits, by path."""
        self.history: History | None = None
        """What was counted since the cache was opened."""
        self.failure: str | None = None
        """Why there is no cache, once that is known."""
        self._timers: list[Every] = []

    def open(self, parts: Parts) -> None:
        """Has this cache answer, on the loop that runs."""
        self.parts, self.receive = parts, parts.service.receive
        self.history = past = History(parts, time.time)
        self._timers = [
            Every(DELAY_SECONDS, self.timings.loop_delay.add),
            Every(history.SECONDS, lambda late: past.note()),
        ]

    def close(self) -> Parts | None:
        """No cache answers any more; the one that did."""
        parts, self.parts, self.receive = self.parts, None, _pass_on
        for timer in self._timers:
            timer.end()
        return parts

    @property
    def dialects(self) -> Registry:
        """The APIs whose calls are looked up."""
        return self.parts.dialects if self.parts else dialects.installed()

    @property
    def upstream_url(self) -> str:
        """Upstream as scheme://host:port; in words for people where it is not known."""
        return self.parts.upstream.url if self.parts else "the upstream"

    @property
    def replay_rate(self) -> float:
        """The pace of stored streams, in tokens a second; 0: at once."""
        return self.settings.replay_tokens_per_second if self.settings else 0.0

    @property
    def is_offline(self) -> bool:
        """Whether upstream is never asked."""
        return self.settings is not None and self.settings.mode is Mode.OFFLINE

    @property
    def reports(self) -> Reports:
        """What can be told of the proxy now."""
        return Reports(
            self.parts,
            self.settings,
            self.failure,
            time.monotonic(),
            self.timings,
            self.history,
            time.time(),
            self._lane_off(),
        )

    def begun(self, started: float) -> None:
        """The first event goes out of the stream that answers a call of that time."""
        self.timings.first_event.add(time.monotonic() - started)

    def hit(self, ask: Ask, outcome: Outcome, started: float, size: int) -> None:
        """As `log`, of a hit that the fast lane has written in one go: as cheap as can be."""
        head, seconds, settings = ask.head, time.monotonic() - started, self.settings
        self._hits[head.path].add(seconds)
        if settings and not settings.quiet:
            self._tell(head.path, outcome, seconds, ask.id, head.run, 200, size)

    def log(self, ended: Ended) -> None:
        """Counts a request, and tells people what has become of it."""
        self.timings.of(self._dialects.get(ended.path, OTHER), ended.outcome.kind).add(
            ended.seconds
        )
        if self.settings and not self.settings.quiet:
            self._tell(*ended)

    def _tell(self, *what: Any) -> None:
        """Writes the line of a request; `what` is that of `Ended`."""
        ended = Ended(*what)
        if self.settings and self.settings.log_format is LogFormat.JSON:
            requests.info("%s", AsJson(ended, time.time(), self._dialects.get(ended.path)))
        else:
            requests.info("%s", ended)
