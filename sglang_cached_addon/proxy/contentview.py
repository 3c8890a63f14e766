"""The cached APIs' bodies in mitmproxy's flow views, for people: an addon that has a content view.

`dialects/rendering.py` writes the lines; here they are given to mitmproxy, which has had two kinds
of content views. Reads flows and changes nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from mitmproxy import flow, http
from mitmproxy.addonmanager import Loader

from sglang_cached_addon import dialects
from sglang_cached_addon.core import cache_status
from sglang_cached_addon.dialects import rendering
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.dialects.layout import Line
from sglang_cached_addon.proxy import inside

logger = logging.getLogger("sglang_cached_addon")

NAME = "sglang-cached"
"""The name of the view, where people choose one."""

PRIORITY, NOT_OURS = 10.0, -1.0
"""mitmproxy's own views have 2 at most, and take what has a number below 0 from nobody."""


class ContentViews:
    """An addon that adds the view, and takes it away."""

    name = "sglang_cached_contentviews"

    def __init__(self) -> None:
        self._view: Contentview | View | None = None

    def load(self, loader: Loader) -> None:
        # Who shows flows has imported it. Others need not: it takes a tenth of a second.
        if views := sys.modules.get("mitmproxy.contentviews"):
            self._view = Contentview() if hasattr(views, "Contentview") else View()
            views.add(self._view)

    def done(self) -> None:
        if self._view:
            inside.remove_view(self._view)
            self._view = None


class Contentview:
    """The view as mitmproxy 12 wants it."""

    name = NAME
    syntax_highlight = "none"

    def prettify(self, data: bytes, metadata: Any) -> str:
        lines = shown(data, metadata.flow, metadata.http_message)
        return "\n".join(text for _, text in lines)

    def render_priority(self, data: bytes, metadata: Any) -> float:
        return _priority(data, metadata.flow, metadata.http_message)

    def __lt__(self, other: Any) -> bool:
        return bool(self.name < other.name)


class View:
    """The view as mitmproxy 11 wants it."""

    name = NAME

    def __call__(
        self, data: bytes, *, flow: Any = None, http_message: Any = None, **others: Any
    ) -> tuple[str, list[list[tuple[str, str]]]]:
        lines = shown(data, flow, http_message)
        # Of a line with nothing in it, mitmweb shows nothing.
        return self.name, [[(style.value, text or " ")] for style, text in lines]

    def render_priority(
        self, data: bytes, *, flow: Any = None, http_message: Any = None, **others: Any
    ) -> float:
        return _priority(data, flow, http_message)

    def __lt__(self, other: Any) -> bool:
        return bool(self.name < other.name)


def shown(data: bytes, flow: flow.Flow | None, message: http.Message | None) -> list[Line]:
    """The lines for a message's body."""
    dialect = _dialect(flow)
    if dialect and isinstance(flow, http.HTTPFlow):
        try:
            return _lines(dialect, data, flow, message)
        except Exception:  # a dialect of others may raise anything; the body is shown all the same
            logger.debug("sglang-cached: %s cannot be shown", dialect.name, exc_info=True)
    return list(rendering.as_it_is(data))


def _lines(
    dialect: Dialect, data: bytes, flow: http.HTTPFlow, message: http.Message | None
) -> list[Line]:
    fields: Mapping[str, str] = flow.response.headers if flow.response else {}
    said = cache_status.in_words(fields)
    if isinstance(message, http.Request):
        return list(rendering.request(dialect, data, said))
    asked = flow.request.get_content(strict=False) or b""
    is_stream = fields.get("content-type", "").startswith("text/event-stream")
    return list(rendering.answer(dialect, data, said, asked=asked, is_stream=is_stream))


def _priority(data: bytes, flow: flow.Flow | None, message: http.Message | None) -> float:
    return PRIORITY if data and message and _dialect(flow) else NOT_OURS


def _dialect(flow: flow.Flow | None) -> Dialect | None:
    """The dialect of a flow's route."""
    if not isinstance(flow, http.HTTPFlow):
        return None
    route = flow.request.method, flow.request.path.partition("?")[0]
    return dialects.installed().get(route)
