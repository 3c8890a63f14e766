"""mitmweb with the addon, and its own HTTP API, as its page uses it: flows, what is shown of them,
commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.conftest import HAS_TOKEN, START_SECONDS, Mitmproxy, end, until
from tests.ports import free_port

PASSWORD = "mitmweb-password"
SETS = ("web_open_browser=false", *([f"web_password={PASSWORD}"] if HAS_TOKEN else []))
"""Options of a mitmweb that `Mitmweb` can use."""


class Mitmweb:
    """A client of one mitmweb."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self._session.trust_env = False
        for cookie in ("_xsrf", "_mitmproxy_xsrf"):
            self._session.cookies.set(cookie, "00", domain="127.0.0.1")
        self._session.headers.update(
            {"X-XSRFToken": "00", "Authorization": f"Bearer {PASSWORD}"},
        )

    def wait_until_ready(self) -> None:
        """The page comes after the proxy."""
        until(self._is_there, START_SECONDS)

    def _is_there(self) -> bool:
        try:
            return self._session.get(self._url, timeout=30).status_code == 200
        except requests.ConnectionError:
            return False

    def close(self) -> None:
        self._session.close()

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        answer = self._session.request(method, f"{self._url}{path}", timeout=30, **how)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def flows(self) -> list[dict[str, Any]]:
        """All flows, in the order in which they came."""
        found: list[dict[str, Any]] = self._ask("GET", "/flows")
        return found

    def views(self) -> list[str]:
        """The names of the content views."""
        found: list[str] = self._ask("GET", "/state")["contentViews"]
        return found

    def shown(self, flow: str, message: str, view: str = "Auto") -> str:
        """What a person sees of a flow's `request` or `response`, in one of the views."""
        found = self._ask("GET", f"/flows/{flow}/{message}/content/{view}")
        if "text" in found:
            return str(found["text"])
        return "\n".join("".join(text for _, text in line) for line in found["lines"])

    def events(self) -> str:
        """What is in the event log."""
        return "\n".join(event["message"] for event in self._ask("GET", "/events"))

    def command(self, name: str, *arguments: str) -> Any:
        """What a command gives; who it fails for gets its error."""
        found = self._ask("POST", f"/commands/{name}", json={"arguments": arguments})
        assert "error" not in found, found["error"]
        return found.get("value")

    def refused(self, name: str, *arguments: str) -> str:
        """What is said where a command fails."""
        found = self._ask("POST", f"/commands/{name}", json={"arguments": arguments})
        assert "error" in found, found
        return str(found["error"])


class Web:
    """The addon in mitmweb, and what has been asked through it."""

    def __init__(self, url: str, folder: Path) -> None:
        port = free_port()
        options = [f"web_port={port}", f"confdir={folder}", "listen_host=127.0.0.1",
                   "listen_port=0", f"sglang_cache_path={folder / 'cache'}", *SETS]  # fmt: skip
        sets = [word for option in options for word in ("--set", option)]
        self.proxy = Mitmproxy("mitmweb", ["--mode", f"reverse:{url}", *sets], folder)
        self.proxy.wait_until_ready()
        self.page = Mitmweb(port)

    def ask(self, path: str, body: Any) -> tuple[str, str]:
        """Sends a call; what is shown of its request and of its answer."""
        before = len(self.page.flows())
        requests.post(f"{self.proxy.url}{path}", json=body, timeout=30)

        def answered() -> dict[str, Any] | None:
            flow = next(f for f in self.page.flows()[before:] if f["request"]["path"] == path)
            return flow if flow.get("response", {}).get("contentLength") else None

        flow = until(answered)  # the client has its answer before that is kept
        return self.page.shown(flow["id"], "request"), self.page.shown(flow["id"], "response")


@contextmanager
def web_proxy(url: str, folder: Path) -> Iterator[Web]:
    """`mitmweb -s` in front of a URL, with its cache in the folder."""
    found = Web(url, folder)
    try:
        found.page.wait_until_ready()
        yield found
    finally:
        found.page.close()
        end(found.proxy)
