"""What a server makes of a call: what it is asked in another way, and what is not looked up of it.

Pure: takes what is known of the server.
"""

from __future__ import annotations

from dataclasses import replace

from sglang_cached_addon.core.call import Call, as_streams
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, WITHOUT_N
from sglang_cached_addon.core.policy import MAX_SAMPLES, Reason, Refused


def is_fixed(call: Call, server: Server) -> bool:
    """Whether a seed is all that samples differ by."""
    return call.is_seeded and server.engine != SGLANG


def fitted(call: Call, server: Server) -> Call:
    """The call as it is looked up at this server. Raises `Refused`."""
    if call.total > MAX_SAMPLES:
        raise Refused(Reason.TOO_LARGE)
    if is_fixed(call, server) and len(set(call.items)) < len(call.items):
        raise Refused(Reason.INSEPARABLE)  # two samples of a prompt would be one sample twice
    if call.n > 1 and server.engine in WITHOUT_N:
        raise Refused(Reason.ONE_CHOICE)
    if call.may_be_kept and server.keeps_answers:
        raise Refused(Reason.STATE)
    if not call.stream:
        return call
    if server.streams_usage or server.streams_apart:
        call = replace(call, stream=replace(call.stream, usage=True))
    return as_streams(call) if server.streams_apart else call
