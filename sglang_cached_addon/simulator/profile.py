"""Plain values: what a simulator is started with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CONTEXT_LENGTH = 4096
"""The most tokens that a prompt and its answer may have together."""


@dataclass(frozen=True)
class Profile:
    """What the simulated server was started with."""

    seed: int = 0
    """Of the words that it makes up; /server_info shows another one, new in each process."""
    tokens_per_second: float = 0.0
    """The pace of each sample; 0: all at once."""
    time_to_first_token: float = 0.0
    """Seconds."""
    model: str = "simulated"
    weight_version: str = "default"
    """A label, nothing more."""
    api_key: str = ""
    """Empty: the server is open. "a,b": either is accepted."""

    @property
    def served(self) -> str:
        """The name of the model in the API."""
        return self.model
