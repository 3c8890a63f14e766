"""The browser of the tests does what they rely on."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tests.browser import NewTab, barriers

if TYPE_CHECKING:
    from playwright.sync_api import Page

GOOD = "data:text/html,<!doctype html><html lang=en><title>t</title><main><h1>Hello</h1></main>"
BAD = f"{GOOD}<img src='data:,'>"


def test_tab(tab: Page, new_tab: NewTab) -> None:
    """A tab shows a page as its context has it, and its test runs in the browser's thread."""
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    tab.goto(GOOD)
    assert tab.get_by_role("heading").inner_text() == "Hello"
    assert not tab.evaluate(dark)
    assert new_tab(color_scheme="dark").evaluate(dark)
    assert threading.current_thread() is not threading.main_thread()


def test_other_tests(request: pytest.FixtureRequest) -> None:
    """While there is a browser, a test of anything else can run a loop of its own."""
    request.getfixturevalue("tab")
    assert threading.current_thread() is threading.main_thread()
    assert asyncio.run(asyncio.sleep(0, 1)) == 1


def test_outside(tab: Page) -> None:
    """No page finds another machine, by name or address."""
    from playwright.sync_api import Error

    for url in ("http://example.com/", "http://192.0.2.1/"):
        with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
            tab.goto(url)


def test_barriers(tab: Page) -> None:
    """An image that says nothing to who does not see it is told of."""
    tab.goto(GOOD)
    assert barriers(tab) == []
    tab.goto(BAD)
    assert [found.split(":")[0] for found in barriers(tab)] == ["image-alt"]
