"""What `sglang-cached doctor` asks other servers: the one behind, and Redis.

Finds out, and decides nothing: `server_diagnosis` does. The server behind is sent the smallest call
of each route.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime

from sglang_cached_addon import dialects
from sglang_cached_addon.cli import server_diagnosis
from sglang_cached_addon.cli.diagnosis import Finding
from sglang_cached_addon.cli.server_diagnosis import Server
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.dialects.base import Dialect, probes_of
from sglang_cached_addon.upstream.asking import Questions, Verdict
from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken, Headers
from sglang_cached_addon.wire.tls import tls_context

_OF_TOKENIZERS = ("sglang-tokenize", "sglang-detokenize", "anthropic-count-tokens")
"""APIs that are answered whatever the model is."""

PROBE_SECONDS = 10.0
"""How long a call may take."""


async def ask_server(url: str, api_key: str, *, insecure: bool) -> tuple[Server, float | None]:
    """What a server says, and how far its clock is ahead of ours, in seconds."""
    headers: Headers = ()
    if api_key:
        headers = ((b"Authorization", f"Bearer {api_key}".encode()),)
    tls = tls_context(insecure=insecure) if url.startswith("https:") else None
    with closing(Questions(url, tls)) as questions, closing(Client(url, tls=tls)) as client:
        said = await questions.round(headers)
        if said.identity is None:
            failure = await _failure(client) if said.verdict is Verdict.DOWN else ""
            return Server(url, said.verdict, failure=failure), None
        statuses, skew = await _probe(client, headers, said.identity)
        return Server(url, said.verdict, said.identity, statuses), skew


async def _failure(client: Client) -> str:
    """Why a server cannot be reached; empty if it can by now."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await client.ask("GET", "/health", ())
    except (Unreachable, Broken, TimeoutError) as e:
        return str(e)
    return ""


async def _probe(
    client: Client, headers: Headers, identity: Identity
) -> tuple[dict[str, int | None], float | None]:
    """What comes of the smallest call of each route, and how far the clock is ahead."""
    statuses: dict[str, int | None] = {}
    skew = None
    for path, dialect in _asked().items():
        body, own = probes_of(dialect, identity.model)[0]
        fields = (*headers, *own, (b"Content-Type", b"application/json"))
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                answer = await client.ask("POST", path, fields, body)
        except (Unreachable, Broken, TimeoutError):
            statuses[path] = None
        else:
            statuses[path] = answer.status
            skew = _ahead(answer.headers) if skew is None else skew
    return statuses, skew


def _asked() -> dict[str, Dialect]:
    """A route of each API whose calls the model itself answers."""
    found: dict[str, Dialect] = {}
    for (method, path), dialect in dialects.installed().items():
        is_new = method == "POST" and dialect not in found.values()
        if is_new and dialect.name not in _OF_TOKENIZERS:
            found[path] = dialect
    return found


def _ahead(fields: Headers) -> float | None:
    for name, value in fields:
        if name.lower() == b"date":
            with suppress(ValueError):
                return parsedate_to_datetime(value.decode("latin-1")).timestamp() - time.time()
    return None


async def ask_redis(url: str) -> Finding:
    from sglang_cached_addon.store.redis.server import Away, SharedServer

    try:
        server = SharedServer(url)
    except ValueError as e:
        return server_diagnosis.redis("--store", str(e), None)
    try:
        found = (await server.send([("PING",) if server.is_cluster else ("INFO",)]))[0]
    except Away as e:
        return server_diagnosis.redis(server.name, str(e), None)
    finally:
        await server.close()
    if isinstance(found, Exception):
        return server_diagnosis.redis(server.name, str(found), None)
    return server_diagnosis.redis(server.name, "", found if isinstance(found, dict) else None)
