"""litellm: reads lines with calls, makes one after the other, and writes a line with what it got.

It is run by a Python of its own, which need have nothing but litellm: `make clients`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from inspect import isawaitable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for prices on the web

import litellm

warnings.simplefilter("ignore")  # its types do not know all that SGLang says
litellm.telemetry = False
litellm.suppress_debug_info = True


async def ask(name: str, body: dict[str, Any]) -> Any:
    """What a function of the package returns; of a stream, its chunks."""
    function: Any = litellm
    for member in name.split("."):
        function = getattr(function, member)
    answer = function(api_key="none", max_retries=0, timeout=60, **body)
    is_async = isawaitable(answer)
    answer = await answer if is_async else answer
    if not body.get("stream"):
        return _plain(answer)
    chunks = [chunk async for chunk in answer] if is_async else list(answer)
    return [_plain(chunk) for chunk in chunks]


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return value.model_dump(mode="json", warnings=False) if hasattr(value, "model_dump") else value


async def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # it prints
    for line in sys.stdin:
        print(json.dumps([await ask(*call) for call in json.loads(line)]), file=out, flush=True)


asyncio.run(main())
