"""Other addons of mitmproxy that look on: whether there are any, and how they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from mitmproxy import addonmanager, ctx, hooks, http
from mitmproxy.addons.disable_h2c import DisableH2C

FLOW_HOOKS = ("requestheaders", "request", "responseheaders", "response")
"""The hooks of flows, which the fast lane does without."""

_OWN = ("sglang_cached", "sglang_cached_flows")
"""The names of our addons with such hooks."""


class Onlookers:
    """Those who want to see requests, or what is answered."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Their names, as of when they were last looked for."""
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def is_there(self) -> bool:
        """Somebody looks on."""
        return bool(self.names)

    def look(self) -> None:
        """Looks for them: a script may have been loaded."""
        self.names = [
            getattr(addon, "name", type(addon).__name__.lower())
            for addon in addonmanager.traverse(ctx.master.addons.chain)
            if getattr(addon, "name", "") not in _OWN
            and not isinstance(addon, DisableH2C)
            and any(hasattr(addon, hook) for hook in FLOW_HOOKS)
        ]

    async def tell(self, flow: http.HTTPFlow, hook: str) -> None:
        """Runs a hook of a flow in all addons, as mitmproxy does."""
        await ctx.master.addons.handle_lifecycle(hooks.all_hooks[hook](flow))

    def tell_soon(self, flow: http.HTTPFlow, *names: str) -> None:
        """The same with hooks that nobody waits for, one after the other."""

        async def tell() -> None:
            for name in names:
                await self.tell(flow, name)

        self._do(tell())

    def update(self, flow: http.HTTPFlow) -> None:
        """What is shown of a flow has changed."""
        self._do(ctx.master.addons.trigger_event(hooks.UpdateHook([flow])))

    def _do(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        if not task.done():  # it may have begun at once
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
