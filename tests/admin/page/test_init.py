"""The document of the page; what it does is seen in `tests/e2e/test_page.py`."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from sglang_cached_addon.admin import page as package
from sglang_cached_addon.admin.page import SCRIPTS, page


def test_policy() -> None:
    """What stands in the page may run there, and nothing else may."""
    answer = page()
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
    )
    body = answer.body.decode()
    for name, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{name}[^>]*>(.*?)</{name}>", body, re.S)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert policy.pop(directive) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'", "trusted-types": "'none'",
        "require-trusted-types-for": "'script'",
    }  # fmt: skip


def test_nothing_else_is_needed() -> None:
    """It names no file and no other place."""
    body = page().body.decode()
    assert set(re.findall(r"""https?://[^\s"'`]+""", body)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""\bsrc=|@import|url\(|href="(?!#|data:)""", body)


def test_text_is_text() -> None:
    """Nothing in its scripts makes markup or code of a text."""
    names = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\("
    )
    folder = files(package)
    assert {f"{name}.js" for name in SCRIPTS} == {
        path.name for path in folder.iterdir() if path.name.endswith(".js")
    }
    for name in SCRIPTS:
        text = (folder / f"{name}.js").read_text()
        assert not names.search(text), name
        assert max(map(len, text.splitlines())) <= 100, name
        assert len(text.splitlines()) <= 250, name
        assert text.startswith("// "), name
