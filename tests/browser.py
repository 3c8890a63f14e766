"""A real browser for the tests of pages: Debian's Chromium, headless, which Playwright drives.

One browser a test process, and contexts of its own for each test. It finds nothing but this
machine. Playwright's synchronous API leaves an event loop running in its thread, where no other one
can be run from then on: so the browser has a thread of its own, and a test that asks for one of the
fixtures runs there as a whole. A fixture that drives a tab does so by `Chromium.do`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

P = ParamSpec("P")
T = TypeVar("T")

AXE = Path(__file__).parents[1] / "node_modules/axe-core/axe.min.js"
"""What `make clients` fetches."""

ARGUMENTS = [
    "--no-sandbox",  # root has none
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


class Chromium:
    """A running browser, and the thread that drives it."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, "browser")
        self.do(self._start, path)

    def _start(self, path: str) -> None:
        from playwright.sync_api import sync_playwright  # half a second, for who needs it

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=path, args=ARGUMENTS)

    def do(self, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls it in the browser's thread."""
        return self._thread.submit(what, *args, **kwargs).result()

    def context(self, **options: Any) -> BrowserContext:
        """A new one, for who is in the browser's thread; `options` are those of Playwright."""
        return self._browser.new_context(**options)

    def close(self) -> None:
        self.do(self._browser.close)
        self.do(self._playwright.stop)
        self._thread.shutdown()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser of this test process."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    browser = Chromium(path)
    yield browser
    browser.close()


NewTab = Callable[..., "Page"]


@pytest.fixture
def new_tab(chromium: Chromium) -> Iterator[NewTab]:
    """Opens tabs, each in a context of its own: `new_tab(color_scheme="dark", ...)`."""
    contexts: list[BrowserContext] = []

    def open_tab(**options: Any) -> Page:
        contexts.append(chromium.context(**options))
        return contexts[-1].new_page()

    yield open_tab
    for context in contexts:
        chromium.do(context.close)


@pytest.fixture
def tab(chromium: Chromium, new_tab: NewTab) -> Page:
    """A tab in a context of its own."""
    return chromium.do(new_tab)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Lets a test of the browser run in the browser's thread."""
    if browser := pyfuncitem.funcargs.get("chromium"):
        test = pyfuncitem.obj
        pyfuncitem.obj = lambda **arguments: browser.do(test, **arguments)


def barriers(tab: Page) -> list[str]:
    """What keeps people with disabilities from using the page, as far as axe-core sees it: what it
    calls serious or critical."""
    if not AXE.is_file():
        pytest.skip("there is no axe-core; `make clients` fetches it")
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(AXE.read_text())
    found = tab.evaluate("axe.run().then(found => found.violations)")
    return [
        f"{rule['id']}: {json.dumps([node['html'] for node in rule['nodes']])}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
