"""What the fast lane and the hooks share: the open cache, the settings of now, and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine
from typing import Any

from sglang_cached_addon.admin.reports import Reports
from sglang_cached_addon.assembly import Parts
from sglang_cached_addon.core import printable
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.dialects import Registry, installed
from sglang_cached_addon.service.asking import Answer, Ask
from sglang_cached_addon.service.findings import Bypass
from sglang_cached_addon.settings import Settings

logger = logging.getLogger("sglang_cached_addon")

PASSED_ON = Bypass(Outcome(Kind.BYPASS, reason=Reason.ROUTE))
"""What becomes of a call where there is no cache, or where it fails: upstream gets it."""


class Desk:
    """Takes the calls of both transports to the open cache."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        """The settings of now; None before mitmproxy has told them."""
        self.parts: Parts | None = None
        """The cache, while it is open."""
        self.failure: str | None = None
        """Why there is no cache, once that is known."""

    @property
    def dialects(self) -> Registry:
        """The APIs whose calls are looked up."""
        return self.parts.dialects if self.parts else installed()

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
        return Reports(self.parts, self.settings, self.failure, time.monotonic())

    def receive(self, ask: Ask) -> Answer | Coroutine[Any, Any, Answer]:
        """As `Service.receive`; without a cache, calls are passed on."""
        return self.parts.service.receive(ask) if self.parts else PASSED_ON

    def log(self, path: str, outcome: Outcome, started: float) -> None:
        """Tells people what has become of a call that came at that time (monotonic, seconds)."""
        if self.settings and not self.settings.quiet:
            logger.info("%s", outcome.line(printable.path(path), time.monotonic() - started))
