"""What is asked of one of the proxy's own routes: how its path, query and body are read.

Pure. What is not understood raises `BadQuery`, with what would be.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

import orjson

from sglang_cached_addon.catalog.query import BadQuery
from sglang_cached_addon.core.runs import checked

CLEARABLE = ("current", "other", "all")
"""Whose samples can be cleared, beside those of models by their name, or of one by its key."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a route."""

    method: str
    path: str
    query: str
    body: bytes

    @property
    def named(self) -> str:
        """What the path has where its route has a name in braces."""
        return self.path.split("/")[3]

    @property
    def run(self) -> str:
        """The run that the path names."""
        try:
            return checked(self.named)
        except ValueError as e:
            raise BadQuery(str(e)) from None

    @property
    def parameters(self) -> dict[str, str]:
        """The members of the query, each of which may be there once."""
        pairs = parse_qsl(self.query, keep_blank_values=True)
        if len(dict(pairs)) < len(pairs):
            raise BadQuery(f"{self.path} takes each of its parameters once")
        return dict(pairs)

    @property
    def after(self) -> float:
        """The time in the query: Unix seconds."""
        name, _, value = (self.query or "after=-inf").partition("=")
        try:
            return float(value if name == "after" else "")
        except ValueError:
            message = f"{self.path} takes ?after=TIME, in Unix seconds, and nothing else"
            raise BadQuery(message) from None

    @property
    def is_now(self) -> bool:
        """Whether it is to have happened when it is answered."""
        if self.parameters not in ({}, {"now": "true"}, {"now": "false"}):
            raise BadQuery(f"{self.method} {self.path} takes ?now=true, and nothing else")
        return self.parameters.get("now") == "true"

    @property
    def cleared(self) -> str:
        """Whose samples are to be cleared: as `Parts.clear` takes it."""
        # Nothing else is understood, nor are words in another way: what is cleared is gone.
        name, _, written = self.query.partition("=") if self.query else ("model", "=", "all")
        which = unquote(written)
        is_odd = bool(set(written) & set("=&;?#+")) or (which in CLEARABLE and which != written)
        if name != "model" or not which or is_odd:
            named = "|".join((*CLEARABLE, "NAME", "KEY"))
            raise BadQuery(
                f"{self.path} takes ?model={named}, once, and nothing else; "
                "the KEY of a model is in /cache/info"
            )
        return which

    def check_fresh(self) -> None:
        """Nothing but a fresh run can be wished for."""
        try:
            value = orjson.loads(self.body)
        except ValueError:
            value = None
        if not (isinstance(value, dict) and value.pop("fresh", None) is True and not value):
            raise BadQuery(f'{self.path} takes {{"fresh": true}}, and nothing else')
