"""What `/cache/explain` is asked, and what it answers, as JSON.

Pure: the call in the body is never made. Knows nothing of how it is explained.
"""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.service.explaining import Explaining

WANTED = (
    '/cache/explain takes {"path": "/v1/chat/completions", "body": {...}, "headers": {...}}; '
    "the body may also be its text, and the headers may be left out"
)


async def explained(explaining: Explaining, request: bytes) -> dict[str, Any]:
    """The explanation of the call in a request. Raises ValueError for what is none."""
    try:
        asked = orjson.loads(request)
    except ValueError:
        raise ValueError(WANTED) from None
    members = asked if isinstance(asked, dict) else {}
    path, body, headers = members.get("path"), members.get("body"), members.get("headers", {})
    is_known = members.keys() <= {"path", "body", "headers"}
    if not (is_known and isinstance(path, str) and isinstance(headers, dict)):
        raise ValueError(WANTED)
    if "body" not in members or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError(WANTED)
    # As text it has what is lost by reading it: members that come twice, integers of any size.
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    fields = tuple((name.encode(), value.encode()) for name, value in headers.items())
    return (await explaining.explain(path, raw, fields)).as_json()
