"""The mitmproxy addon: its options, the opening of the cache, and the connections of clients.

`sglang-cached start` loads it, and so does `mitmdump -s`. What becomes of flows is in
`proxy/hooks.py`, an addon within this one.
"""

from __future__ import annotations

import gc
import logging
from functools import partial

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.mode_specs import ReverseMode

from sglang_cached_addon.assembly import Parts, assemble
from sglang_cached_addon.proxy import gateway, lane
from sglang_cached_addon.proxy.commands import CacheCommands
from sglang_cached_addon.proxy.connections import Connections
from sglang_cached_addon.proxy.contentview import ContentViews
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.fetch_flows import FetchFlows
from sglang_cached_addon.proxy.hooks import FlowHooks
from sglang_cached_addon.proxy.inside import handler_of, proxyserver
from sglang_cached_addon.proxy.listening import url_here
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.proxy.selfcheck import InsidePart, faults, has
from sglang_cached_addon.proxy.target import target_of
from sglang_cached_addon.proxy.web import WebPage
from sglang_cached_addon.settings import OPTIONS, Settings
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.upstream import Health
from sglang_cached_addon.wire import descriptors, http1

logger = logging.getLogger("sglang_cached_addon")

LEAVING, LEAVING_SECONDS = 8, 1.0
"""How many clients are hung up at once where descriptors run short, and how long nobody must have
waited for them."""


class SglangCached:
    """Answers what is stored, and stores what upstream answers."""

    name = "sglang_cached"

    def __init__(self, *, announce: bool = True) -> None:
        """`announce`: log one line about upstream and cache when both are there."""
        self.lost = 0
        """Samples that could not be written before the end."""
        self.connections = Connections()
        """Of the clients that are there."""
        self._announce = announce
        self._desk = Desk(self._lane_off)
        self._onlookers = Onlookers()
        self._hooks = FlowHooks(self._desk, self.connections, self._onlookers)
        self.addons = [self._hooks, ContentViews(), CacheCommands(self._desk), WebPage()]
        """Those within this one, for mitmproxy."""
        self._heads = http1.HeadReader(())
        self._said_closed = False

    @property
    def parts(self) -> Parts | None:
        """The cache, while it is open."""
        return self._desk.parts

    # Set-up

    def load(self, loader: Loader) -> None:
        for option in OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.option_help)
        if server := proxyserver():
            server.servers.changed.connect(self._servers_changed)

    def configure(self, updated: set[str]) -> None:
        if not updated & {option.name for option in OPTIONS}:
            return
        try:
            settings = Settings.parse(
                {option.name: getattr(ctx.options, option.name) for option in OPTIONS}
            )
        except ValueError as e:
            raise exceptions.OptionsError(str(e)) from e
        before = self._desk.settings
        for name in ("cache_path", "store") if self.parts and before else ():
            if getattr(settings, name) != getattr(before, name):
                raise exceptions.OptionsError(
                    f"sglang_{name}: cannot change while the cache is open"
                )
        self._desk.settings = settings
        if self._is_time_to_open():  # a script is loaded late
            self.running()

    async def _servers_changed(self) -> None:
        if self._is_time_to_open():
            self.running()
            await self.look()
        self._note_where()

    def _note_where(self) -> None:
        """Writes into the cache folder where clients are let in."""
        found = proxyserver()
        addresses = [a for server in found.servers for a in server.listen_addrs] if found else []
        if self.parts and self.parts.store.journal:
            self.parts.store.journal.announce(url_here(addresses[0]) if addresses else "")

    def _is_time_to_open(self) -> bool:
        """Whether mitmproxy is about to listen: who came before the store is open could not be
        answered. It has a hook for when it does listen only."""
        found = proxyserver()
        return found is not None and any(not server.is_running for server in found.servers)

    def running(self) -> None:
        if not (self.parts or self._desk.failure):
            self._try_to_open()
        self._note_where()

    def _try_to_open(self) -> None:
        try:
            self.open()
        except (ValueError, StoreError) as e:
            self._desk.failure = str(e)
            logger.error("sglang-cached: %s", e)
            return
        if self._announce and self.parts:
            loaded = self.parts.store.loaded
            logger.info(
                "sglang-cached: %s, %d entries (%d samples) from %s",
                self.parts.upstream.url,
                loaded.keys,
                loaded.samples,
                self.parts.place,
            )

    def open(self) -> None:
        """Opens the store; raises ValueError or `StoreError`. Who comes before that cannot be
        answered."""
        assert self._desk.settings
        observer = FetchFlows(self._onlookers, self._desk)
        parts = assemble(self._desk.settings, target_of(ctx.options), observer)
        self._desk.open(parts)
        self._onlookers.look()
        self._heads = http1.HeadReader(parts.dialects, parts.heads)
        descriptors.make_room = partial(self.connections.hang_up, LEAVING, LEAVING_SECONDS)
        # What was loaded stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        for part, fault in faults().items():
            logger.warning(
                "sglang-cached: off, as this mitmproxy is not as expected: %s (%s)",
                part.value,
                fault,
            )
        # With `eager`, every client would open an upstream connection before its first request.
        ctx.options.update(connection_strategy="lazy")

    async def look(self) -> Health:
        """Asks upstream who it is, but waits no longer than a call would."""
        return await self.parts.upstream.inquiry.check() if self.parts else Health.UNKNOWN

    def done(self) -> None:
        if parts := self._desk.close():
            self.lost = parts.close()

    # Hooks

    def client_connected(self, client: Client) -> None:
        handler = handler_of(client)
        if not handler or not isinstance(client.proxy_mode, ReverseMode):
            return
        connection = self.connections.add(handler)
        if connection and not self._lane_off():
            lane.open_lane(connection, self._heads, self._desk)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        if not has(InsidePart.LAYERS):
            return
        connection = self.connections.get(nextlayer.context.client)
        ours = gateway.reverse_proxy(
            nextlayer.context,
            nextlayer.data_client()[:1],
            self._hooks.front,
            connection,
        )
        if ours:
            nextlayer.layer = ours

    def client_disconnected(self, client: Client) -> None:
        self._hooks.left(client)
        self.connections.remove(client)

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        await descriptors.for_upstream()

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        # With it, mitmproxy would answer each later request of this client with 502, for as long as
        # its connection lives.
        data.server.error = None
        if self.parts:
            self.parts.upstream.seen(False)

    # The fast lane

    def _lane_off(self) -> str:
        """Why the fast lane is not for clients who come now; empty where it is. Says so once where
        that is because of others."""
        self._onlookers.look()
        settings = self._desk.settings
        if not (self.parts and settings):
            return "the cache is not open"
        if not has(InsidePart.LAYERS, InsidePart.WATCHDOG, InsidePart.READER):
            return "this mitmproxy is not as expected"
        if not settings.express:
            return "sglang_express is false"
        if ctx.options.body_size_limit:  # of that, mitmproxy knows
            return "there is a body_size_limit"
        others = self._onlookers.names
        if not others:
            return ""
        names = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        if not self._said_closed:
            self._said_closed = True
            logger.info("sglang-cached: fast lane off, so that other addons see hits (%s)", names)
        return f"other addons look on ({names})"

    @property
    def active(self) -> int:
        """Requests that have come and are not answered, and answers on their way to the store, or
        to others."""
        unfinished = self.parts.unfinished if self.parts else 0
        return len(self._hooks.flows) + self.connections.busy + unfinished


addons = [SglangCached()]
