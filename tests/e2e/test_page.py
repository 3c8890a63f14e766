"""The page `/cache/`, in a real browser: what people see of a proxy, and what they do with it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.browser import NewTab, barriers
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import CHAT, COMPLETIONS, GENERATE, ask, asking, post
from tests.e2e.conftest import StartFront
from tests.simulator import Fault, Simulator
from tests.tables import each

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytestmark = pytest.mark.one_way

PHONE = {"viewport": {"width": 360, "height": 740}}
TOKEN = "t0ken-\xe9"
LOADING = "Failed to load resource"
"""What a browser says of any answer that is not a 200."""

HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script><b>bold</b>",
    "</script><svg onload=alert(3)>",
    "\u202egnp.exe\u202c \u2066isolate \u0007bell\u0000",
    "\u05e9\u05dc\u05d5\u05dd, \u0645\u0631\u062d\u0628\u0627 right to left",
    "{style} javascript:alert(4) ${alert(5)}",
)

Visit = Callable[..., "Page"]


@pytest.fixture
def visit(new_tab: NewTab) -> Iterator[Visit]:
    """Opens the page of a proxy in a new context: `visit(proxy, "#/runs", color_scheme="dark")`.
    Nothing else is asked for, nothing is refused by the policy, and no script fails."""
    faults: list[str] = []

    def note(kind: str, text: str) -> None:
        if kind == "error" and not text.startswith(LOADING):
            faults.append(text)

    def open_page(proxy: Proxy, fragment: str = "", **options: Any) -> Page:
        tab = new_tab(**options)
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: note(message.type, message.text))
        tab.on("pageerror", lambda error: note("error", str(error)))
        tab.on("dialog", lambda dialog: note("error", dialog.message))
        tab.on("request", lambda r: None if r.url.startswith(own) else note("error", r.url))
        own = (f"{proxy.url}/", "data:")
        tab.goto(f"{proxy.url}/cache/{fragment}")
        tab.get_by_role("heading", level=1).wait_for()
        return tab

    yield open_page
    assert faults == []


@pytest.fixture(scope="module")
def filled(upstream: Simulator, start_front: StartFront) -> Proxy:
    """A proxy that has a little of everything, for who changes nothing."""
    proxy = start_front(upstream.url)
    ask(proxy, COMPLETIONS, asking(COMPLETIONS, [f"prompt number {i}" for i in range(60)]))
    ask(proxy, GENERATE, asking(GENERATE, "the needle", n=3))
    ask(proxy, GENERATE, asking(GENERATE, "the needle", n=3))
    ask(proxy, f"/run/passes{CHAT}", asking(CHAT, "in a run", n=2))
    return proxy


def shows(place: Locator, text: str | re.Pattern[str]) -> None:
    """Waits until that is seen there."""
    from playwright.sync_api import expect

    expect(place).to_contain_text(text, timeout=60_000)


def has(places: Locator, count: int) -> None:
    """Waits until there are so many of them."""
    from playwright.sync_api import expect

    expect(places).to_have_count(count, timeout=60_000)


def press_to(tab: Page, name: str) -> None:
    """Goes by the keyboard to the link, the button or the field of that name."""
    is_there = """name => {
        const it = document.activeElement;
        const label = it.labels?.[0]?.textContent ?? it.getAttribute("aria-label");
        return (label ?? it.textContent).trim() === name;
    }"""
    for _ in range(80):
        tab.keyboard.press("Tab")
        if tab.evaluate(is_there, name):
            return
    pytest.fail(f"no way by the keyboard to {name}")


def key_of(proxy: Proxy, **query: str) -> str:
    """The key of the one entry that is found."""

    def found() -> list[dict[str, Any]]:  # a busy machine may have it look again
        answer = requests.get(f"{proxy.url}/cache/entries", params=query, timeout=30)
        entries: list[dict[str, Any]] = answer.json()["entries"]
        return entries

    (entry,) = until(found)
    key: str = entry["key"]
    return key


def tile(tab: Page, name: str) -> Locator:
    return tab.locator(".tiles > div").filter(has_text=name).locator("dd")


def test_live(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """The overview follows what happens, in numbers, charts and words, and a page that is opened
    later shows the past."""
    proxy = start_proxy(simulator.url)
    tab = visit(proxy)
    shows(tab.locator(".flights"), "Nothing is being fetched.")
    shows(tile(tab, "Hit rate"), "of 0 requests")
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(post, proxy, GENERATE, asking(GENERATE, "one two", n=2))
        shows(tab.locator(".flights tbody tr"), GENERATE)
        simulator.release()
        assert call.result().status_code == 200
    shows(tab.locator(".flights"), "Nothing is being fetched.")
    proxy.stats()
    for _ in range(3):
        ask(proxy, GENERATE, asking(GENERATE, "one two", n=2))
    shows(tile(tab, "Hit rate"), "75 %of 4 requests")
    shows(tile(tab, "Stored"), "2samples in 1 entry")
    shows(tile(tab, "Tokens saved"), "48")
    for again in (tab, visit(proxy)):
        chart = again.get_by_role("img", name=re.compile("Requests over 1 hour: 3 hit, 1 miss"))
        has(chart, 1)
        shows(again.locator("figure").filter(has_text="Hit rate"), "Hit rate75 %")
        has(again.get_by_role("img", name=re.compile("Hit rate over 1 hour: between .* %")), 1)
    # What is there for the eye alone is not read out.
    assert "1 hour ago" not in tab.locator("figure").first.aria_snapshot()
    tab.get_by_role("radio", name="1 hour").focus()
    tab.keyboard.press("ArrowRight")
    has(tab.get_by_role("img", name=re.compile("Requests over 1 day: 3 hit")), 1)
    tab.get_by_text("The same in numbers").click()
    shows(tab.locator(".numbers tbody tr").first, re.compile(r"\d\d:\d\d.* %"))


def test_search(filled: Proxy, visit: Visit) -> None:
    """Entries are found by text, API and age, a page at a time; back, forward and reload show
    what the address names."""
    tab = visit(filled, "#/entries")
    listed = tab.locator(".entries > li")
    has(listed, 50)
    shows(tab.locator("main"), "62 entries")
    tab.get_by_role("link", name="Older").click()
    has(listed, 12)
    tab.go_back()
    has(listed, 50)
    tab.get_by_label("Text in prompt or answer").fill("NEEDLE")
    tab.keyboard.press("Enter")
    has(listed, 1)
    shows(listed, re.compile("the needle.*sglang-generate3 samples"))
    assert "text=NEEDLE" in tab.url
    tab.reload()
    has(listed, 1)
    assert tab.get_by_label("Text in prompt or answer").input_value() == "NEEDLE"
    tab.get_by_label("API").select_option("openai-chat")
    shows(tab.locator("main"), "Nothing was found.")
    tab.go_back()
    has(listed, 1)
    listed.get_by_role("link").click()
    shows(tab.get_by_role("heading", level=1), "Entry")
    tab.go_back()
    has(listed, 1)
    for label, value, count in (
        ("API", "openai-chat", 1), ("API", "openai-completion", 50), ("Age", "newer-3600", 50),
        ("Age", "older-86400", 0), ("Run", "passes", 1), ("Model", "other", 0),
        ("Model", "simulated", 50),
    ):  # fmt: skip
        tab.goto(f"{filled.url}/cache/#/entries")
        has(listed, 50)
        tab.get_by_label(label).select_option(value)
        has(listed, count)


def test_search_that_stops(filled: Proxy, visit: Visit) -> None:
    """A search that has ended early says so, and goes on until something is found."""
    answers = iter(["first", "second", "third"])

    def answer(route: Route) -> None:
        if cursor := next(answers, ""):
            stopped = "It was looked for a moment."
            page = {"entries": [], "next": cursor, "stopped": stopped, "total": 62}
            route.fulfill(json=page)
        else:
            route.continue_(url=route.request.url.replace("cursor=third", "cursor="))

    tab = visit(filled, "#/runs")
    tab.route("**/cache/entries?*", answer)
    tab.goto(f"{filled.url}/cache/#/entries?text=needle")
    shows(tab.locator("main"), "Nothing was found yet.")
    shows(tab.locator(".note"), "It was looked for a moment.")
    tab.get_by_role("button", name="Search on").click()
    shows(tab.locator(".entries > li"), "the needle")
    assert "cursor=third" in tab.url
    tab.get_by_role("link", name="Newest").click()
    shows(tab.locator(".entries > li"), "the needle")


def test_entry(filled: Proxy, visit: Visit) -> None:
    """An entry shows what was asked, and its samples side by side: when each was made, what it is,
    in which runs it was used."""
    tab = visit(filled, f"#/entry/{key_of(filled, api='openai-chat')}")
    shows(tab.locator(".request"), re.compile("user.*in a run"))
    shows(tab.locator(".fields"), re.compile("max_tokens8"))
    samples = tab.get_by_role("article")
    has(samples, 2)
    boxes = [sample.bounding_box() for sample in samples.all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"]
    for sample in samples.all():
        shows(sample, re.compile("length8 tokens.*(ago|just now).*Used in passes"))
        sample.get_by_text("As stored").click()
        assert json.loads(sample.locator(".code").inner_text())["object"] == "chat.completion"
    samples.first.get_by_role("link", name="passes").click()
    has(tab.locator(".entries > li"), 1)


def test_keyboard(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """The keyboard alone is enough to find an entry and to delete it; what is deleted is generated
    anew, and who has second thoughts keeps it."""
    proxy = start_proxy(simulator.url)
    ask(proxy, GENERATE, asking(GENERATE, "keep this"))
    ask(proxy, GENERATE, asking(GENERATE, "delete this"))
    tab = visit(proxy)
    press_to(tab, "Entries")
    tab.keyboard.press("Enter")
    shows(tab.get_by_role("heading", level=1), "Entries")
    press_to(tab, "Text in prompt or answer")
    tab.keyboard.type("delete")
    tab.keyboard.press("Enter")
    has(tab.locator(".entries > li"), 1)
    press_to(tab, "delete this")
    tab.keyboard.press("Enter")
    shows(tab.get_by_role("heading", level=1), "Entry")
    dialog = tab.get_by_role("dialog")
    for last in ("Escape", "Enter"):  # the dialog's first button is the harmless one
        press_to(tab, "Delete…")
        tab.keyboard.press("Enter")
        shows(dialog, "Delete this entry and its 1 sample?")
        tab.keyboard.press(last)
        dialog.wait_for(state="hidden")
    assert ask(proxy, GENERATE, asking(GENERATE, "delete this")).headers["X-Cache"] == "HIT"
    press_to(tab, "Delete…")
    tab.keyboard.press("Enter")
    press_to(tab, "Delete")
    tab.keyboard.press("Enter")
    shows(tab.get_by_role("status").first, "Deleted: 1 sample.")
    shows(tab.get_by_role("heading", level=1), "Entries")
    shows(tab.locator(".entries > li"), "keep this")
    assert ask(proxy, GENERATE, asking(GENERATE, "keep this")).headers["X-Cache"] == "HIT"
    assert ask(proxy, GENERATE, asking(GENERATE, "delete this")).headers["X-Cache"] == "MISS"


def test_clear(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """A model can be cleared."""
    proxy = start_proxy(simulator.url)
    ask(proxy, GENERATE, asking(GENERATE, "one two", n=2))
    tab = visit(proxy)
    tab.get_by_role("button", name="Clear simulated…").click()
    shows(tab.get_by_role("dialog"), "Clear simulated: 2 samples?")
    tab.get_by_role("button", name="Clear", exact=True).click()
    shows(tab.get_by_role("status").first, "Cleared: 2 samples in 1 entry.")
    shows(tile(tab, "Stored"), "0samples in 0 entries")
    assert proxy.stats()["total_responses"] == 0


def test_runs(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """Runs are shown with their places, and can be rewound, begun anew and forgotten."""
    proxy = start_proxy(simulator.url)
    called = asking(CHAT, "one two", temperature=0.9)
    ask(proxy, f"/run/eval{CHAT}", called)
    tab = visit(proxy, "#/runs")
    row = tab.get_by_role("row").filter(has_text="eval")

    def choose(name: str) -> None:
        tab.get_by_role("button", name=f"{name} eval").click()
        tab.get_by_role("dialog").get_by_role("button", name=re.compile(r"^(?!Cancel)")).click()

    shows(row, "eval1101")  # calls, places, reused, generated
    choose("Rewind")
    shows(row, "eval1001")
    assert ask(proxy, f"/run/eval{CHAT}", called).headers["X-Cache"] == "HIT"
    shows(row, "eval2111")
    choose("Begin")
    shows(row, "eval2011")
    assert ask(proxy, f"/run/eval{CHAT}", called).headers["X-Cache"] == "MISS"
    choose("Delete")
    shows(tab.locator("main"), "No run is known.")


def test_hostile_texts(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """Whatever stands in prompts is shown as text, as it stands there, and stays in its place."""
    proxy = start_proxy(simulator.url)
    for text in HOSTILE:
        message = {"role": text, "content": text, text: text}
        body = {**asking(CHAT, text), "messages": [message], "user": text, text: [text]}
        assert ask(proxy, CHAT, body).status_code == 200, text
        ask(proxy, COMPLETIONS, asking(COMPLETIONS, text))
        ask(proxy, GENERATE, asking(GENERATE, text))
    tab = visit(proxy, "#/entries", **PHONE)
    listed = tab.locator(".entries > li")
    has(listed, 3 * len(HOSTILE))
    shows(tab.locator("main"), "<script>alert(2)</script><b>bold</b>")
    hrefs = [link.get_attribute("href") or "" for link in listed.get_by_role("link").all()]
    seen = ""
    for href in hrefs:
        tab.goto(f"{proxy.url}/cache/{href}")
        shows(tab.get_by_role("heading", level=1), "Entry")
        shows(tab.locator(".key"), href.removeprefix("#/entry/"))
        for details in tab.locator("summary").all():
            details.click()
        seen += tab.locator(".request").inner_text()
        assert tab.locator("main").locator("img, script, svg, b, iframe, object").count() == 0
        assert not set(tab.locator("main").inner_text()) & set("\u202e\u202c\u2066\x00\x07")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for text in (HOSTILE[0], HOSTILE[1], "⟨202E⟩gnp.exe⟨202C⟩", "bell⟨0000⟩", *HOSTILE[3:]):
        assert seen.count(text) >= 3, text


def test_parts(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """Prompts that are no plain text are readable, too: parts of messages, calls of tools, token
    ids; what is no text is there for who opens it, and no number is rounded."""
    proxy = start_proxy(simulator.url)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUFB"}}
    parts = [{"type": "text", "text": "what is this?"}, image]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "a cat", "tool_call_id": "c1"},
    ]
    ask(proxy, CHAT, {**asking(CHAT, ""), "messages": messages, "seed": 2**63 - 1})
    ids: dict[str, Any] = asking(GENERATE, "")
    del ids["text"]
    ask(proxy, GENERATE, {**ids, "input_ids": [11, 12, 13]})
    tab = visit(proxy, f"#/entry/{key_of(proxy, api='openai-chat')}")
    request = tab.locator(".request")
    shows(request, re.compile(r"user.*what is this\?.*assistant.*look.*tool.*a cat", re.S))
    request.get_by_text("image_url, ").click()
    shows(request, "base64,QUFB")
    shows(tab.locator(".fields"), "9223372036854775807")
    tab.goto(f"{proxy.url}/cache/#/entry/{key_of(proxy, api='sglang-generate')}")
    request.get_by_text("3 token ids").click()
    shows(request, "11 12 13")


def test_large_texts(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """Of a text of megabytes the beginning is shown, and all of it to who wants it."""
    proxy = start_proxy(simulator.url)
    text = "word " * 400_000 + "the end"
    ask(proxy, GENERATE, {**asking(GENERATE, "large"), "note": text})
    tab = visit(proxy, "#/entries")
    tab.locator(".entries").get_by_role("link").click()
    shown = tab.locator(".fields .text").first
    shows(shown, "word word")
    assert len(shown.inner_text()) <= 20_000
    tab.get_by_role("button", name="Show all 2,000,007 characters").click()
    shows(shown, "the end")


def test_token(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """The admin token is asked for once in a tab, kept for it, and for no other one."""
    proxy = start_proxy(simulator.url, "--admin-token", TOKEN)
    tab = visit(proxy, "#/entries")
    field, heading = tab.get_by_label("Admin token"), tab.get_by_role("heading", level=1)
    shows(tab.locator("main"), "This proxy was started with an admin token.")
    assert barriers(tab) == []
    tab.keyboard.type(f"{TOKEN}x")
    tab.keyboard.press("Enter")
    shows(tab.locator("main"), "That is not the admin token.")
    field.fill(TOKEN)
    tab.keyboard.press("Enter")
    shows(tab.locator("main"), "Nothing is stored yet.")
    for name in ("Runs", "Overview", "Entries"):
        tab.get_by_role("link", name=name, exact=True).click()
        shows(heading, name)
    tab.reload()
    shows(tab.locator("main"), "Nothing is stored yet.")
    other = tab.context.new_page()
    other.goto(tab.url)
    shows(other.get_by_role("heading", level=1), "Admin token")
    tab.get_by_role("button", name="Forget the token").click()
    shows(heading, "Admin token")
    tab.reload()
    shows(heading, "Admin token")


def test_the_proxy_ends(simulator: Simulator, start_proxy: StartProxy, visit: Visit) -> None:
    """Who looks at a proxy that has ended is told so, and not that all is well."""
    proxy = start_proxy(simulator.url)
    tab = visit(proxy)
    proxy.stop(signal.SIGKILL)
    shows(tab.get_by_role("status").first, "The proxy does not answer")


def test_other_pages(filled: Proxy, upstream: Simulator, new_tab: NewTab) -> None:
    """A page of another site in the same browser neither reads, deletes nor clears anything, and
    cannot show this one in a frame."""
    key = key_of(filled, api="openai-chat")
    tab = new_tab()
    tab.goto(f"{upstream.url}/health")
    for method, path in (("GET", "entries"), ("DELETE", f"entries/{key}"), ("POST", "clear")):
        for mode in ("cors", "no-cors"):
            read = tab.evaluate(
                """([url, method, mode]) => fetch(url, {method, mode})
                    .then((answer) => answer.text(), () => "")""",
                [f"{filled.url}/cache/{path}", method, mode],
            )
            assert read == "", (method, mode)
    tab.set_content(f"<iframe src='{filled.url}/cache/'></iframe>")
    frame = tab.frames[1]
    frame.wait_for_url("chrome-error:**")
    assert filled.stats()["num_keys"] == 62


VIEWS = {
    "#/": "Overview", "#/entries": "Entries", "#/entry/{key}": "Entry",
    "#/entries?text=nowhere": "Entries", "#/runs": "Runs", "#/nowhere": "Not found",
}  # fmt: skip
LOOKS: list[dict[str, Any]] = [{}, {**PHONE, "color_scheme": "dark"}]


@each("options", LOOKS)
def test_each_look(options: dict[str, Any], filled: Proxy, visit: Visit) -> None:
    """Each view has no barriers that axe-core calls serious, light and dark, and fits a phone."""
    tab = visit(filled, **options)
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if "color_scheme" in options else "rgb(246, 246, 244)")
    key = key_of(filled, api="openai-chat")
    for view, heading in VIEWS.items():
        tab.goto(f"{filled.url}/cache/{view.format(key=key)}")
        shows(tab.get_by_role("heading", level=1), heading)
        has(tab.locator("main:not([aria-busy])"), 1)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert barriers(tab) == [], view
    tab.go_back()
    tab.get_by_role("button", name="Rewind passes").click()
    assert barriers(tab) == []


def test_head(filled: Proxy) -> None:
    """The page is found without its slash and below the name of a run, and what it may do is said
    in its head."""
    for path in ("/cache", "/cache/", "/run/a/cache/"):
        answer = requests.get(f"{filled.url}{path}", timeout=30)
        assert answer.status_code == 200
        assert answer.url.endswith("/cache/")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert "X-Cache" not in answer.headers
    assert requests.head(f"{filled.url}/cache/", timeout=30).text == ""
