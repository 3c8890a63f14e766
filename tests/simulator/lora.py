"""LoRA adapters: which are loaded, what their names stand for, and which one a request wants."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Ask
from tests.simulator.profile import Profile

TENSORS = "__tensor__"  # the path of an adapter that came in a request


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a name stands for: the weights at a path, or sent as `content`."""

    path: str
    content: str = ""


class Adapters:
    """The adapters of one process. What it refuses is a Flaw in SGLang's words."""

    def __init__(self, profile: Profile) -> None:
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._known: dict[str, Adapter] = {}  # all that ever were loaded
        for given in profile.lora_paths:
            name, _, path = given.partition("=")
            self.load(name, Adapter(path or name))

    @property
    def paths(self) -> dict[str, str]:
        """Of the loaded ones."""
        return {name: adapter.path for name, adapter in tuple(self._loaded.items())}

    def load(self, name: str, adapter: Adapter) -> None:
        self._loaded[name] = self._known[name] = adapter

    def unload(self, name: str) -> None:
        del self._loaded[name]

    def chosen(self, ask: Ask, served: str) -> list[str]:
        """For each prompt all that is to be known of its adapter, "" for none.

        One that was unloaded is loaded again from its path.
        """
        return ["" if name is None else self._found(name) for name in _names(ask, served)]

    def _found(self, name: str) -> str:
        adapter = self._known.get(name)
        if adapter is None:
            text = f"Got LoRA adapter that has never been loaded: {name}\n"
            raise Flaw(f"{text}All loaded adapters: {self._known.keys()}.")
        if name not in self._loaded and adapter.path == TENSORS:
            raise Flaw(f"Failed to implicitly load LoRA adapter {name}: no such path: {TENSORS}")
        self._loaded.setdefault(name, adapter)
        return f"{name}={adapter.path}={adapter.content}"


def _names(ask: Ask, served: str) -> list[str | None]:
    """The adapter's name for each prompt: the suffix of the model goes before `lora_path`."""
    suffix = ""
    if ask.model.startswith(f"{served}:"):
        suffix = ask.model[len(served) + 1 :]
    elif ask.model != served:
        suffix = ask.model.partition(":")[2]
    given = suffix.strip() or ask.body.get("lora_path") or None
    return given if isinstance(given, list) else [given] * len(ask.prompts)
