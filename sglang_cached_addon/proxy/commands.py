"""mitmproxy's commands `cache.*`: what the proxy's own routes do, for who sits at mitmproxy.

mitmproxy waits for no command, and mitmweb shows what one returns in a single line. So texts are
written into mitmproxy's log, when they are there. Decides nothing: the routes do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import orjson
from mitmproxy import command, exceptions, flow, http

from sglang_cached_addon.admin import routes
from sglang_cached_addon.admin.access import Caller
from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.core.printable import MAX_LINE, printable
from sglang_cached_addon.dialects import layout, rendering
from sglang_cached_addon.dialects.display import shortened
from sglang_cached_addon.proxy.desk import Desk

logger = logging.getLogger("sglang_cached_addon")

HERE = Caller(is_local=True, host="localhost")
"""Who sits at mitmproxy may do all that can be done on this machine."""

SUMMARY = (
    "{num_keys} entries, {total_responses} samples; {hits} hits, {partial_hits} partial, "
    "{misses} misses, {collapsed} collapsed; {hit_rate:.0%} of calls answered without waiting"
)
"""What is said of the counts in a line."""

SHOWN_KEYS = 10
"""How many keys of a call with many prompts are shown."""

SHOWN_BODY = 100
"""How many characters of a call are shown, by which people know it."""

Words = Callable[[dict[str, Any]], Iterable[str]]
"""A function that puts what a route has answered into lines for people."""


class CacheCommands:
    """An addon with the commands."""

    name = "sglang_cached_commands"

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._asking: set[asyncio.Task[None]] = set()

    @command.command("cache.stats")
    def stats(self) -> str:
        """Show what is stored, and what became of calls since the start."""
        try:
            found = self._desk.reports.stats()
        except OSError as e:
            raise exceptions.CommandError(str(e)) from None
        _say(["sglang-cached:", *(text for _, text in layout.table(found))])
        return SUMMARY.format(**found)

    @command.command("cache.clear")
    def clear(self, model: str = "all") -> str:
        """Remove what is stored: of the current model, of every other, or all."""
        return self._ask("POST", f"/cache/clear?model={quote(model, safe='')}", _cleared)

    @command.command("cache.show")
    def show(self, key: str) -> str:
        """Show an entry with its samples; of its key, four digits may do."""
        return self._ask("GET", f"/cache/entries/{quote(key, safe='')}", _shown)

    @command.command("cache.delete")
    def delete(self, key: str, now: bool = False) -> str:
        """Remove an entry; with `true`, its text leaves the disk at once."""
        query = "?now=true" if now else ""
        return self._ask("DELETE", f"/cache/entries/{quote(key, safe='')}{query}", _deleted)

    @command.command("cache.explain")
    def explain(self, of: flow.Flow) -> str:
        """Tell what would become of a flow's call now, and which stored calls are nearest."""
        if not isinstance(of, http.HTTPFlow) or of.request.raw_content is None:
            raise exceptions.CommandError("there is no call in this flow")
        path, body = of.request.path, of.request.raw_content.decode(errors="replace")
        asked = {"path": path, "body": body, "headers": dict(of.request.headers)}
        named = f"{path} {shortened(' '.join(body.split()), SHOWN_BODY)}"

        def words(found: dict[str, Any]) -> Iterable[str]:
            return _explained(named, found)

        return self._ask("POST", "/cache/explain", words, orjson.dumps(asked))

    def _ask(self, method: str, target: str, words: Words, body: bytes = b"") -> str:
        """Asks one of the proxy's own routes; the log has in words what it answers."""
        route = routes.find(target)
        assert route
        path, _, query = target.partition("?")
        request = Request(method, path, query, body)
        answer = routes.answer(route, request, HERE, "", self._desk.reports)

        async def tell() -> None:
            told = await answer
            found = orjson.loads(told.body)
            if told.status == 200:
                _say(words(found))
            else:
                keys = "".join(f"\n{key}" for key in found.get("keys", ()))
                logger.warning("sglang-cached: %s%s", found["error"]["message"], keys)

        task = asyncio.get_running_loop().create_task(tell())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return "the text is in the event log as soon as it is there"


def _say(lines: Iterable[str]) -> None:
    """Writes lines into the log; what was sent by others moves no terminal."""
    logger.info("%s", "\n".join(printable(line, MAX_LINE) for line in lines))


def _shown(found: dict[str, Any]) -> Iterable[str]:
    answers = found["answers"]
    model = found["model"] or "a model without a name"
    yield f"sglang-cached: {found['key']}, of {model}"
    yield from (text for _, text in rendering.entry(found["api"], found["call"] or {}, answers))


def _deleted(found: dict[str, Any]) -> Iterable[str]:
    when = "is gone from" if found["is_compacted"] else "leaves"
    yield (
        f"sglang-cached: {found['deleted']} was removed ({found['samples']} samples); its text "
        f"{when} the disk{'' if found['is_compacted'] else ' with the next compaction'}"
    )


def _explained(named: str, found: dict[str, Any]) -> Iterable[str]:
    because = f" ({found['reason']})" if found["reason"] else ""
    yield f"sglang-cached: {named}"
    yield f"would be a {found['outcome']}{because}. {found['text']}"
    yield from (f"key {key}" for key in found["keys"][:SHOWN_KEYS])
    if found["looked_through"] < 1:
        yield f"{found['looked_through']:.0%} of what is stored was looked through; ask again"


def _cleared(found: dict[str, Any]) -> Iterable[str]:
    yield (
        f"sglang-cached: {found['cleared_keys']} entries ({found['cleared_responses']} samples) "
        "were removed"
    )
