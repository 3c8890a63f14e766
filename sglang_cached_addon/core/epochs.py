"""Epochs: numbers that tell a model, or an adapter, from what it was before it was changed.

Pure. What a server does not tell, weights that change under an equal name, is counted here, where
the change passes through the proxy; a fingerprint names a model together with its epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from sglang_cached_addon.core.identity import Identity, hex_digest

SPAN = 1 << 20
"""How many proxies that share their epochs can each have numbers of their own."""

_COLONS = 8
"""How many of the first colons of `model` are tried as the one before the adapter. A model that is
named by a URL, as `s3://host:9000/model`, has two of its own."""


def adapters(content: bytes) -> set[str]:
    """The adapters that a call with this canonical content (an item of a `Call`) may select: by
    `lora_path`, or by `model`, as `base:adapter` or (vLLM) as `adapter`. It gives rather too many.

    Raises `ValueError` for what is not JSON, which canonical content is.
    """
    if b'"lora_path"' not in content and b'"model"' not in content:
        return set()
    call = orjson.loads(content)
    if not isinstance(call, dict):
        return set()
    path, model = call.get("lora_path"), call.get("model")
    names = path if isinstance(path, list) else [path]
    if isinstance(model, str):
        parts = model.split(":", _COLONS)
        names = [*names, *(":".join(parts[i:]).strip() for i in range(len(parts)))]
    return {name for name in names if isinstance(name, str) and name}


_MODEL, _ADAPTER = "m:", "a:"


@dataclass(slots=True)
class Epochs:
    """How often each model, and each adapter, was changed through the proxy. A model that comes
    back under a former name is not trusted to be the former one.

    An epoch is a number that was never given before; 0 stands for "never changed".
    """

    last: int = 0
    """The highest number that was ever given."""
    floor: int = 0
    """The lowest epoch that a model can have."""
    models: dict[str, int] = field(default_factory=dict)
    """The epoch of each model, by its `Identity.digest`, where it is above the floor."""
    adapters: dict[str, int] = field(default_factory=dict)
    """The epoch of each adapter that was ever changed, by its name."""
    salt: int = 0
    """A number from 1 to `SPAN` - 1 that sets this proxy's epochs apart from those of proxies that
    share them; 0 where there are none."""

    def _next(self, last: int) -> int:
        return (last // SPAN + 1) * SPAN + self.salt if self.salt else last + 1

    def of(self, digest: str) -> int:
        """The epoch of a model."""
        return max(self.models.get(digest, 0), self.floor)

    def raise_model(self, digest: str | None) -> None:
        """Notes that a model was changed, or may have been. None stands for any model."""
        self.last = self._next(self.last)
        if digest is None:
            self.floor = self.last
            self.models.clear()
        else:
            self.models[digest] = self.last

    def raise_adapter(self, name: str) -> None:
        """Notes that an adapter was loaded or unloaded, or may have been. Where its name is not
        known, the model is to be raised: that makes all calls new, with and without an adapter."""
        self.last = self._next(self.last)
        self.adapters[name] = self.last

    def restarted(self, after: Identity) -> None:
        """Notes that another process answers, which has loaded its weights anew.

        A model that was never changed is what it was, and keeps its answers. One that was is
        neither what the last process made of it nor surely what it was at first. The same holds for
        adapters, which the new process has from its command line, if at all.
        """
        is_changed = self.of(after.digest) > 0
        if not is_changed and not self.adapters:
            return
        self.last = self._next(self.last)
        if is_changed:
            self.models[after.digest] = self.last
        self.adapters = dict.fromkeys(self.adapters, self.last)

    def as_numbers(self) -> dict[str, int]:
        """All epochs, each under a name of its own."""
        numbers = {"last": self.last, "floor": self.floor}
        numbers |= {f"{_MODEL}{digest}": number for digest, number in self.models.items()}
        numbers |= {f"{_ADAPTER}{name}": number for name, number in self.adapters.items()}
        return {name: number for name, number in numbers.items() if number}

    def merge(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
        """Takes over what other proxies have made of the numbers that were `known`. Where a number
        has changed here as well, the higher one counts. Gives whether anything has changed."""
        mine = self.as_numbers()
        merged = dict(theirs)
        for name in mine | dict(known):
            number = mine.get(name, 0)
            if number != known.get(name, 0):
                merged[name] = max(number, theirs.get(name, 0))
        merged["last"] = max(mine.get("last", 0), *merged.values(), 0)
        if {name: number for name, number in merged.items() if number} == mine:
            return False
        self.last, self.floor = merged["last"], merged.get("floor", 0)
        self.models, self.adapters = (
            {name[2:]: n for name, n in merged.items() if name.startswith(kind) and n}
            for kind in (_MODEL, _ADAPTER)
        )
        return True

    def fingerprint(self, identity: Identity) -> str:
        """32 hexadecimal digits that name a model in its present epoch."""
        return hex_digest(f"{identity.digest} {self.of(identity.digest)}".encode())

    def adapter_epochs(self, names: Iterable[str]) -> str:
        """A text that names the epochs of these adapters; empty if none was ever changed."""
        pairs = sorted((name, self.adapters[name]) for name in set(names) if name in self.adapters)
        return orjson.dumps(pairs).decode() if pairs else ""

    @property
    def adapters_token(self) -> str:
        """A text that names the epochs of all adapters; empty if none was ever changed."""
        return self.adapter_epochs(self.adapters)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        members = asdict(self)
        del members["salt"]
        return members

    @classmethod
    def from_json(cls, value: Any) -> Epochs:
        """The epochs that `as_json` wrote. Raises `ValueError` for anything else."""
        if not isinstance(value, dict):
            raise ValueError("epochs: not an object")
        last = _epoch(value, "last")
        floor = _epoch(value, "floor")
        models, adapters = _epochs(value, "models"), _epochs(value, "adapters")
        if max(floor, *models.values(), *adapters.values(), 0) > last:
            # It would be given a second time.
            raise ValueError("epochs: a number above the last that was given")
        return cls(last, floor, models, adapters)


def _epoch(members: dict[str, Any], name: str) -> int:
    number = members.get(name)
    if type(number) is not int or number < 0:
        raise ValueError(f"epochs: {name!r} is not a number of 0 or more")
    return number


def _epochs(members: dict[str, Any], name: str) -> dict[str, int]:
    numbers = members.get(name)
    if not isinstance(numbers, dict):
        raise ValueError(f"epochs: {name!r} is not an object")
    return {key: _epoch(numbers, key) for key in numbers}
