"""What `sglang-cached doctor` makes of what other servers have said: the one behind, and Redis.

Pure: facts are arguments. `server_checkup` finds them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_cached_addon.cli.diagnosis import Finding, State, numbers
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.upstream.asking import Verdict

OLDEST_REDIS = (6, 2)


@dataclass(frozen=True, slots=True)
class Server:
    """What the server behind has said."""

    url: str
    verdict: Verdict
    identity: Identity | None = None
    statuses: Mapping[str, int | None] | None = None
    """What came of the smallest call of each route; None where there was no answer."""
    failure: str = ""
    """Why it cannot be reached."""


_NO_NAME = {
    Verdict.DOWN: (
        State.FAIL,
        "cannot be reached, or speaks no HTTP",
        "Start it, or mend --sglang-url; --insecure is for a certificate that nobody vouches for.",
    ),
    Verdict.SLOW: (State.FAIL, "does not answer in time", "See its log and its load."),
    Verdict.TROUBLED: (
        State.FAIL,
        "answers with an error when it is asked who it is",
        "See its log.",
    ),
    Verdict.REFUSED: (State.WARN, "does not say who it is without a key", "Give one: --api-key."),
    Verdict.NAMELESS: (
        State.FAIL,
        "names no model, so that nothing is cached",
        "It has to answer /model_info or /v1/models.",
    ),
}
"""By verdict without a name: how bad it is, what that means, and what to do."""

_REFUSALS = (401, 403)


def no_server() -> Finding:
    return Finding("upstream", State.WARN, "No server is named.", "Name it: --sglang-url URL.")


def upstream(server: Server) -> list[Finding]:
    """What the server is, whether its version is known, and what it accepts."""
    if server.identity is None:
        state, what, remedy = _NO_NAME[server.verdict]
        why = f": {server.failure}" if server.failure else ""
        return [Finding("upstream", state, f"{server.url} {what}{why}.", remedy)]
    model = server.identity.model
    named = Finding("upstream", State.OK, f"{server.url} answers, and has {model}.")
    return [named, _version(server.identity), _accepts(server.statuses or {})]


def _version(identity: Identity) -> Finding:
    if identity.engine != SGLANG:
        text = f"The server is {identity.engine or 'no SGLang'}; its answers are cached as well."
        return Finding("version", State.OK, text)
    if not identity.version:
        text = "SGLang does not tell its version, so that less is reused of greedy answers."
        return Finding("version", State.WARN, text, "Let it answer /server_info.")
    return Finding("version", State.OK, f"SGLang {identity.version}.")


def _accepts(statuses: Mapping[str, int | None]) -> Finding:
    in_order = sorted(statuses.items(), key=lambda each: each[1] != 200)  # what it can, first
    told = ", ".join(f"{path} {status or 'no answer'}" for path, status in in_order)
    if 200 in statuses.values():
        return Finding("accepts", State.OK, f"It answers: {told}.")
    if any(status in _REFUSALS for status in statuses.values()):
        text = f"It wants a key ({told}): answers are for clients whose key it accepts."
        return Finding("accepts", State.OK, text, "To look with one: --api-key.")
    return Finding("accepts", State.FAIL, f"It answers nothing: {told}.", "See its log.")


def redis(name: str, failure: str, info: Mapping[str, Any] | None) -> Finding:
    """`failure` is why it cannot be used, `info` what it says of itself where it says that."""
    if failure:
        return Finding("redis", State.FAIL, f"{name}: {failure}.", "Start it, or mend --store.")
    if info is None:
        return Finding("redis", State.OK, f"{name} answers.")
    version = str(info.get("redis_version", ""))
    if numbers(version) < OLDEST_REDIS:
        return Finding("redis", State.FAIL, f"{name} is version {version}.", "Use 6.2 or later.")
    if info.get("maxmemory") and info.get("maxmemory_policy") == "noeviction":
        text = f"{name} refuses to store when it is full."
        return Finding("redis", State.WARN, text, "Set maxmemory-policy allkeys-lru.")
    return Finding("redis", State.OK, f"{name} answers, and is version {version}.")
