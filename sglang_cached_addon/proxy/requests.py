"""What is to be known of mitmproxy's requests, and of who has sent them."""

from __future__ import annotations

from collections.abc import Container
from ipaddress import ip_address

from mitmproxy import http
from mitmproxy.connection import Client

from sglang_cached_addon.admin import access
from sglang_cached_addon.core import policy, refusals, runs
from sglang_cached_addon.core.call_head import CallHeads, by_name, is_relayed
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.asking import Ask

PAUSE = "/pause_generation"
ABORTS = ("/abort_request", PAUSE)
"""SGLang's routes that may end calls under way."""


def is_abort(request: http.Request) -> bool:
    """Whether a request may end calls under way."""
    return request.path in ABORTS and request.method == "POST"


def take_run(request: http.Request) -> str:
    """Takes the name of a run out of a request, which goes on as if it had none; empty if there is
    no name. Raises ValueError for a bad one."""
    in_path, request.path = runs.split(request.path)
    field = runs.HEADER.decode()
    in_header = request.headers.pop(field, None)
    return runs.chosen(in_path, in_header)


def is_short(request: http.Request) -> bool:
    """Whether a body is known beforehand to be short enough to be kept."""
    return "transfer-encoding" not in request.headers and length(request) <= policy.MAX_NAMES


def length(message: http.Request | http.Response) -> int:
    """How many bytes a body has, as its head says; 0 where that says nothing."""
    said = message.headers.get("content-length", "0")
    return int(said) if said.isdigit() and len(said) < 20 else 0


def unread(request: http.Request, known: Container[tuple[str, str]]) -> Reason | None:
    """Why a request's body is not read at all; `known` are the methods and paths of dialects."""
    if (request.method, request.path) not in known:
        path = request.path.split("?", 1)[0]
        has_query = (request.method, path) in known
        return Reason.QUERY if has_query else refusals.route_refusal(path)
    return Reason.TOO_LARGE if length(request) > policy.MAX_BODY else None


def ask_of(flow: http.HTTPFlow, call_heads: CallHeads, run: str, request_id: bytes) -> Ask:
    """The call that a flow makes."""
    request = flow.request
    head = call_heads.read(request.method, request.path, by_name(request.headers.fields), run)
    body, fields = request.raw_content or b"", request.headers.fields
    ask = Ask(head, body, fields, is_local=is_local(flow.client_conn))
    ask.id = request_id
    return ask


def caller(flow: http.HTTPFlow, host: str) -> access.Caller:
    """Who asks for one of our own routes, as sent to that host."""
    headers = flow.request.headers
    return access.Caller(
        is_from_here(flow),
        host,
        headers.get("origin"),
        headers.get("sec-fetch-site"),
        headers.get("authorization"),
    )


def is_from_here(flow: http.HTTPFlow) -> bool:
    """Whether a request comes from this machine, and not through another proxy."""
    names = by_name(flow.request.headers.fields)
    return is_local(flow.client_conn) and not is_relayed(names)


def is_local(client: Client) -> bool:
    """Whether a client is on this machine: at a loopback address, or, where the proxy listens on
    another one, at that one itself. What is sent back to that goes to this machine, so that nobody
    else can open a connection from there: of TCP, which the kernel speaks. Where mitmproxy
    takes packets out of a tunnel, anybody may have written the addresses."""
    address = ip_address(client.peername[0].split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if (mapped or address).is_loopback:
        return True
    is_of_kernel = client.proxy_mode.type_name == "reverse" and client.transport_protocol == "tcp"
    return is_of_kernel and client.peername[0] == client.sockname[0]
