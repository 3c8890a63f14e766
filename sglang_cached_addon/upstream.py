"""Who is behind the URL, and whether it answers.

I/O with the standard library only, in threads, never on the event loop. What traffic
shows of the upstream (`seen`) counts as much as a probe does.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from enum import StrEnum

PROBE_SECONDS = 2.0
"""How long an upstream may take to show that it lives."""

FRESH_SECONDS = 5.0
"""How long what was seen of it counts as its state."""

# SGLang's `/health` generates a token and takes a second; this does not, and any status tells.
_PROBE_PATH = "/v1/models"


class State(StrEnum):
    """What is known of the upstream."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


class Upstream:
    """The server that misses go to."""

    def __init__(self, url: str, *, insecure: bool = False) -> None:
        self.url = url
        self.state = State.UNKNOWN
        self.checked_at = float("-inf")
        """On the clock of the caller, in seconds."""
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        # No proxies from the environment, no redirects: what the URL names is what is asked.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)

    def seen(self, up: bool, now: float) -> None:
        """Notes what traffic showed."""
        self.state = State.UP if up else State.DOWN
        self.checked_at = now

    async def check(self, now: float) -> State:
        """The state, asked for if what is known is older than `FRESH_SECONDS`."""
        if now - self.checked_at > FRESH_SECONDS:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    self.seen(await asyncio.to_thread(self._answers), now)
            except TimeoutError:  # an upstream that drips keeps the thread, but not us
                self.seen(False, now)
        return self.state

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends a request whose answer nobody waits for; failures are upstream's to log."""
        await asyncio.to_thread(self._ask, path, body, dict(headers))

    def _answers(self) -> bool:
        return self._ask(_PROBE_PATH, None, {})

    def _ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> bool:
        """Whether there was any HTTP answer."""
        request = urllib.request.Request(self.url + path, body, dict(headers))
        try:
            with self._opener.open(request, timeout=PROBE_SECONDS):
                return True
        except urllib.error.HTTPError:
            return True
        except (OSError, ValueError, http.client.HTTPException):
            return False
