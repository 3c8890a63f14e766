"""Makes the pictures of the docs: `make screenshots`, or `python -m tests.screenshots NAME...`.

Each is of a real proxy in front of the simulator, in a real browser. What is random differs from
one time to the next. The markers in mitmweb want a font that has them: on Debian, that of the
package fonts-noto-color-emoji.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import requests

from tests.browser import Chromium
from tests.conftest import Proxy, end
from tests.ports import free_port
from tests.proxy.test_lifetime import line_of
from tests.simulator import Profile, running

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

IMAGES = Path(__file__).parents[1] / "docs/images"
SIZE = {"width": 1000, "height": 770}
CHAT = "/v1/chat/completions"
QUESTIONS = (
    "Write a function that returns the second largest number of a list.",
    "Translate into French: The ship left the harbour at dawn.",
    "Which is the longest river of Europe? Answer in one word.",
    "Summarise the plot of Moby-Dick in two sentences.",
    "What is wrong with this query? SELECT name FROM users WHERE id = NULL",
)

Picture = Callable[["Page", Proxy], None]


def _ask(proxy: Proxy, question: str, n: int, run: str = "", **more: Any) -> None:
    messages = [
        {"role": "system", "content": "You are a careful assistant."},
        {"role": "user", "content": question},
    ]
    body = {"model": "simulated", "messages": messages, "temperature": 0.8, "max_tokens": 48}
    body |= {"n": n, **more}
    requests.post(f"{proxy.url}{run}{CHAT}", json=body, timeout=30).raise_for_status()


def _fill(proxy: Proxy) -> None:
    """A little of everything."""
    for question in QUESTIONS:
        _ask(proxy, question, 1)
    _ask(proxy, QUESTIONS[0], 3, "/run/monday")
    proxy.stats()


def _past(route: Route) -> None:
    """An hour of traffic, which nobody wants to wait for."""
    now, rows = time.time(), [[0.0] * 15]
    for step in range(361):
        load = 18 + 12 * math.sin(step / 50) + 3 * math.sin(step * 1.7)
        hits = load * (0.12 + 0.8 * (1 - math.exp(-step / 120)) + 0.04 * math.sin(step / 9))
        short = load - hits
        more = [hits, short * 0.15, short * 0.65, short * 0.2, 0, 0.1, hits * 1.4, short * 1.3,
                hits * 190, hits * 2.4, 0, 0, 0, 0]  # fmt: skip
        sums = [last + one for last, one in zip(rows[-1][1:], more, strict=True)]
        rows.append([now - 3600 + 10 * step, *sums])
    rows = [[row[0], *map(int, row[1:])] for row in rows[1:]]
    told = route.fetch().json()
    present = [now, *rows[-1][1:-2], *told["present"][-2:]]
    shown = {**told, "since": now - 3600, "points": rows, "present": present}
    route.fulfill(json=shown)


def _overview(tab: Page, proxy: Proxy) -> None:
    tab.route("**/cache/history*", _past)
    tab.goto(f"{proxy.url}/cache/")
    tab.get_by_role("heading", name="Models").wait_for()


def _entries(tab: Page, proxy: Proxy) -> None:
    tab.goto(f"{proxy.url}/cache/#/entries")
    tab.locator(".entries").wait_for()


def _entry(tab: Page, proxy: Proxy) -> None:
    _entries(tab, proxy)
    tab.get_by_role("link", name=QUESTIONS[0]).click()
    tab.get_by_role("article").first.wait_for()


def _flows(tab: Page, proxy: Proxy) -> None:
    tab.goto(line_of(proxy, "web"))
    tab.get_by_text("bypass (route)").wait_for()


def _fetch(tab: Page, proxy: Proxy) -> None:
    _flows(tab, proxy)
    tab.locator("tr", has_text="fetch of 2 samples (of 3), id ").click()
    tab.get_by_role("link", name="Response", exact=True).click()
    tab.get_by_text("sample 2 of 2").wait_for()


def _watch(proxy: Proxy) -> None:
    """A call of each outcome, for mitmweb."""
    _ask(proxy, QUESTIONS[0], 1)
    proxy.stats()
    _ask(proxy, QUESTIONS[0], 3, "/run/monday")
    proxy.stats()
    _ask(proxy, QUESTIONS[0], 2)
    _ask(proxy, QUESTIONS[1], 1, stream=True)
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda _: _ask(proxy, QUESTIONS[2], 1), range(3)))
    requests.get(f"{proxy.url}/v1/models", timeout=30).raise_for_status()


PICTURES: dict[str, tuple[Picture, dict[str, Any]]] = {
    "page-overview": (_overview, {"viewport": SIZE}),
    "page-entries": (_entries, {"viewport": {"width": 390, "height": 720}, "color_scheme": "dark"}),
    "page-entry": (_entry, {"viewport": SIZE}),
    "mitmweb-flows": (_flows, {"viewport": {"width": 1100, "height": 560}}),
    "mitmweb-fetch": (_fetch, {"viewport": {"width": 1200, "height": 600}}),
}
"""How each is made, and what its browser is like."""


def _take(browser: Chromium, proxy: Proxy, name: str) -> None:
    make, options = PICTURES[name]
    context = browser.context(**options)
    tab = context.new_page()
    make(tab, proxy)
    tab.screenshot(path=IMAGES / f"{name}.png")
    context.close()


def _start(url: str, folder: Path, *, is_web: bool) -> Proxy:
    folder.mkdir()
    place = ["--sglang-url", url, "--port", "0", "--cache-path", str(folder / "cache")]
    sets = [f"confdir={folder}", f"web_port={free_port()}", "view_filter=~u /v1/"]
    web = ["--web", *(word for name in sets for word in ("--set", name))]
    return Proxy([*place, *(web if is_web else [])], folder, executed=True)


def main(names: list[str]) -> None:
    path = shutil.which("chromium")
    if path is None:
        sys.exit("there is no chromium on this machine")
    IMAGES.mkdir(exist_ok=True)
    profile = Profile(time_to_first_token=0.1, tokens_per_second=80)
    with TemporaryDirectory() as folder, running(profile) as simulator, ExitStack() as ends:
        browser = Chromium(path)
        ends.callback(browser.close)
        for kind, fill in (("page", _fill), ("mitmweb", _watch)):
            if wanted := [name for name in names or PICTURES if name.startswith(kind)]:
                proxy = _start(simulator.url, Path(folder) / kind, is_web=kind == "mitmweb")
                ends.callback(end, proxy)
                proxy.wait_until_ready()
                fill(proxy)
                for name in wanted:
                    browser.do(_take, browser, proxy, name)


if __name__ == "__main__":
    main(sys.argv[1:])
