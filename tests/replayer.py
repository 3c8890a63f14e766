"""An upstream that answers with recorded bytes of SGLang, and counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from ssl import SSLContext
from typing import Any

from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects import installed
from sglang_cached_addon.dialects.counted import Counted
from sglang_cached_addon.dialects.listing import Listing
from tests.dialects.bodies import counts
from tests.hearing import Answering, Upstream, serving
from tests.simulator import is_probe

# Written by the server itself.
_FRAMING = {"content-length", "transfer-encoding", "date", "server"}


# What the server says of itself, whichever pair it serves.
_HEADERS = [["content-type", "application/json"]]
_SERVER = {"status": 200, "headers": _HEADERS, "body": '{"enable_response_store":false}'}
INFO: dict[str, Any] = {
    "/model_info": json.loads((Path(__file__).parent / "corpus/get-model_info.json").read_bytes()),
    "/server_info": {"request": {}, "response": _SERVER},
}


class Replayer(Upstream):
    """Serves one recorded pair at a time."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.pair: dict[str, Any] = {"response": {"status": 404, "headers": [], "body": ""}}
        self.received: list[bytes] = []


class _Handler(Answering):
    server: Replayer

    def _answer(self) -> None:
        body = self._read()
        pair = self.server.pair
        is_counting = self.path == "/tokenize" != pair.get("request", {}).get("path")
        if self.path in INFO and pair.get("request", {}).get("path") != self.path:
            pair = INFO[self.path]
        elif is_counting:  # the proxy wants to know what tokens each text of a list has
            self.reply(200, {"count": [counts()[text] for text in json.loads(body)["prompt"]]})
            return
        elif not is_probe(body):
            self.server.received.append(body)
        elif pair["response"]["status"] != 401:  # the proxy tries whether a client may ask
            self.reply(200, [])
            return
        recorded = pair["response"]
        answer = _each_once(pair, body, _under_rid(pair, body)).encode()
        self.send_response(recorded["status"])
        for name, value in recorded["headers"]:
            if name.lower() not in _FRAMING:
                self.send_header(name, value)
        if "data: " in recorded["body"]:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in answer.split(b"\n\n")[:-1]:
                event += b"\n\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Any method: a refusal amid a request would be an answer that comes by chance."""
        if not name.startswith("do_"):
            raise AttributeError(name)
        return self._answer

    def _read(self) -> bytes:
        """The body of a request, all of it."""
        if "chunked" not in self.headers.get("transfer-encoding", "").lower():
            return self.body()
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body


def _under_rid(pair: dict[str, Any], body: bytes) -> str:
    """The recorded answer, with the `rid` that SGLang would echo for this body."""
    answer: str = pair["response"]["body"]
    try:
        asked, sent = json.loads(pair["request"]["body"])["rid"], json.loads(body)["rid"]
    except (KeyError, TypeError, ValueError):
        return answer
    return answer.replace(json.dumps(asked), json.dumps(sent))


def _each_once(pair: dict[str, Any], body: bytes, answer: str) -> str:
    """The recorded answer to a list that has something more than once, as it would be to the same
    list with each once, where that is what is asked for."""
    request = pair.get("request", {})
    dialect = installed().get((request.get("method"), request.get("path")))
    if not isinstance(dialect, Listing) or pair["response"]["status"] != 200:
        return answer
    try:
        call = dialect.read(json.loads(request["body"]))
    except Refused:
        return answer
    if not call.rows or json.loads(body) == call.body:
        return answer
    firsts, said = [call.rows.index(item) for item in range(len(call.items))], json.loads(answer)
    if isinstance(said, list):
        kept = [row for row in said if row["index"] in firsts]
        return json.dumps([{**row, "index": firsts.index(row["index"])} for row in kept])
    for name, rows in said.items():
        if isinstance(rows, list) and len(rows) == len(call.rows):
            said[name] = [rows[row] for row in firsts]
    for index, row in enumerate(said.get("data", ())):
        row["index"] = index
    if isinstance(dialect, Counted):
        inputs = dialect.inputs(call.body)
        tokens = sum(counts()[inputs[row]] for row in firsts)
        said["usage"] |= {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps(said)


def replaying(tls: SSLContext | None = None) -> AbstractContextManager[Replayer]:
    """A replayer in a thread of its own."""
    replayer = Replayer()
    if tls:
        replayer.socket = tls.wrap_socket(replayer.socket, server_side=True)
    return serving(replayer)
