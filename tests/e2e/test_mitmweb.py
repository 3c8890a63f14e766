"""What a person sees in mitmweb, and can do there, in a real browser. What all others see who look
on is in `test_flows.py`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from tests import onlooker
from tests.browser import Chromium
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import CHAT, asking, post, sampled
from tests.ports import free_port
from tests.proxy.test_lifetime import line_of
from tests.simulator import Fault, Simulator

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.one_way

SECONDS = 60
"""How long a person waits for a page on a machine that is busy with much else."""


class Looking:
    """A person who looks at mitmweb, in the thread of the browser, and clients in others."""

    def __init__(self, tab: Page, proxy: Proxy) -> None:
        self.tab, self._proxy = tab, proxy
        self._clients = ThreadPoolExecutor(4)
        tab.set_default_timeout(SECONDS * 1000)
        tab.goto(line_of(proxy, "web"))

    def call(self, text: str, n: int = 1, **more: object) -> Future[requests.Response]:
        body = asking(CHAT, text, n, **more)
        return self._clients.submit(post, self._proxy, CHAT, body, timeout=SECONDS)

    def ask(self, text: str, n: int = 1, **more: object) -> requests.Response:
        """The answer to a call, when what upstream gave for it is stored."""
        answer = self.call(text, n, **more).result()
        self._proxy.stats()
        return answer

    def flow(self, comment: str) -> Locator:
        """The last flow in the list whose comment has these words, once it is there."""
        row = self.tab.locator("tr", has_text=comment).last
        row.wait_for()
        return row

    def sees(self, *texts: str) -> None:
        """The page shows these texts."""
        for text in texts:
            self.tab.get_by_text(text).first.wait_for()

    def opens(self, comment: str, message: str = "Request") -> None:
        """Opens a flow, and one of its messages."""
        self.flow(comment).click()
        self.tab.get_by_role("link", name=message, exact=True).click()

    def close(self) -> None:
        self._clients.shutdown(cancel_futures=True)


@pytest.fixture
def proxy(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> Proxy:
    """`start --web`, with a script that looks on."""
    sets = [
        f"web_port={free_port()}",
        f"confdir={tmp_path}",
        f"onlooker_file={tmp_path / 'flows'}",
        f"view_filter=~u {CHAT}",
    ]  # the page has only those rows that there is room for
    options = [word for name in sets for word in ("--set", name)]
    return start_proxy(simulator.url, "--web", "-s", onlooker.__file__, *options)


@pytest.fixture
def person(tab: Page, proxy: Proxy, chromium: Chromium) -> Iterator[Looking]:
    person = chromium.do(Looking, tab, proxy)
    yield person
    person.close()


def test_what_is_seen(person: Looking, simulator: Simulator, chromium: Chromium) -> None:
    """Each kind of outcome is in the list, with a marker; a fetch shows what went out and what
    came, and a stream has its body."""
    person.ask("Who is there?")
    person.flow("miss 0/1, fetch ").locator("text=🔵").wait_for()
    person.flow("fetch of 1 sample, id ").locator("text=📤").wait_for()
    person.ask("Who is there?", 3)
    person.flow("partial 1/3, fetch ").locator("text=🟡").wait_for()
    person.opens("fetch of 2 samples (of 3), id ")
    person.sees("X-Request-Id", "openai-chat · m · n=2", "Who is there?")
    person.opens("fetch of 2 samples (of 3), id ", "Response")
    person.sees("sample 2 of 2")
    person.opens("partial 1/3, fetch ", "Response")
    person.sees("sample 3 of 3")
    person.ask("Who is there?", 2)
    person.flow("hit 2/2, key ").locator("text=🟢").wait_for()

    person.ask("In a stream?", stream=True)
    person.opens("miss 0/1, fetch ", "Response")
    person.sees("sample 1 of 1")
    person.opens("fetch of 1 sample, id ", "Response")
    person.sees("sample 1 of 1")

    simulator.faults.append(Fault.HOLD)
    calls = [person.call("At once?") for _ in range(2)]
    person.flow("not answered yet, waited for fetch ")
    until(lambda: simulator.waiting)
    simulator.release()
    assert {call.result().headers["X-Cache"] for call in calls} == {"MISS", "COLLAPSED"}
    person.flow("collapsed 1/1, waited for fetch ").locator("text=🔗").wait_for()

    person.ask("add-header, please")
    person.opens("fetch of 1 sample, id ")
    person.sees("X-Added", "add-header, please")


def test_what_can_be_done(person: Looking, simulator: Simulator, chromium: Chromium) -> None:
    """A fetch waits until a person lets it go, and ends when they do not."""
    intercept = person.tab.get_by_placeholder("Intercept")
    intercept.fill("~src sglang-cached & ~q")
    intercept.press("Enter")
    person.sees("Intercept: ~src sglang-cached & ~q")
    fetches = person.tab.locator("tr", has_text="fetch of 1 sample, id ")
    for k, (text, button, verdict) in enumerate(
        [
            ("Let it go", "[a]ccept intercepted flow", "miss 0/1, fetch "),
            ("End it", "kill intercepted flow [x]", "miss 0/1 (killed), fetch "),
        ]
    ):
        call = person.call(text)
        fetches.nth(k).click()
        assert not any(text in str(body) for body in sampled(simulator))
        assert not call.done()
        person.tab.get_by_title(button).click()
        assert call.result().status_code == (502 if "killed" in verdict else 200)
        person.flow(verdict)
    assert [text in str(sampled(simulator)) for text in ("Let it go", "End it")] == [True, False]
