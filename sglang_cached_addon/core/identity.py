"""Who answers: what a server says of itself, as a name for its model.

Pure: takes parsed documents, gives names. A name (`Identity.digest`)
changes with all that a server tells of its model and settings. What it does not tell, weights
that change under an equal name, is counted elsewhere (`epochs`). `/server_info` holds API keys in
clear: nothing of it is kept but digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson

from sglang_cached_addon.core import families, keys, neighbours, server_keys
from sglang_cached_addon.core.families import Reuse
from sglang_cached_addon.core.neighbours import SGLANG

_PROCESS_KEYS = ("startup_time", "random_seed")


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers, as far as it matters to what is asked of it and how its answers are read."""

    engine: str = ""
    """Which program it is, by the names that `neighbours` has; empty where that is not known."""
    weight_version: str | None = None
    """The name that SGLang gives its weights, and puts into each JSON answer."""
    names_spans: bool = True
    """It also says which tokens are of which weights, as SGLang does since 0.5.19."""
    streams_usage: bool = False
    """Its streams end with their usage, whether that is asked for or not."""
    reuse: Reuse = families.NONE
    """What its greedy answers can be used for."""
    fuses_scores: bool = False
    """It puts all items of a call for scores into one sequence."""
    has_workers: bool = False
    """It is a gateway, and several workers answer, each of which has weights of its own."""
    streams_apart: bool = False
    """Nobody knows how it would write as a stream what it has said in JSON, or the other way round:
    each is kept as it came, and given to who asks in that manner."""
    keeps_answers: bool = True
    """It may keep an answer to `/v1/responses`, for clients that come back to it."""
    dates_prompts: bool = True
    """It may put the date into the prompts of `/v1/responses`, as SGLang does for gpt-oss."""


UNKNOWN = Server()

_SPANS = (0, 5, 19)
"""The first version of SGLang that says which tokens are of which weights."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers at a URL."""

    digest: str
    """32 hexadecimal digits of all that the server says and an answer may depend on."""
    model: str
    """The name of the model, for people."""
    weight_version: str | None
    """The name of its weights in `/model_info`; each answer says of which weights it is."""
    incarnation: str
    """A text that another process would not have. Empty where the server does not tell."""
    engine: str = ""
    """As `Server.engine`."""
    version: str = ""
    """The version of SGLang, where it is that and tells."""
    streams_usage: bool = False
    """As `Server.streams_usage`."""
    greedy: str = ""
    """What it says of its greedy answers, as `families.reuse` reads it."""
    fuses_scores: bool = False
    """As `Server.fuses_scores`."""
    has_workers: bool = False
    """As `Server.has_workers`."""
    streams_apart: bool = False
    """As `Server.streams_apart`."""
    keeps_answers: bool = True
    """As `Server.keeps_answers`."""
    dates_prompts: bool = True
    """As `Server.dates_prompts`."""

    @property
    def server(self) -> Server:
        """What matters of it to requests and answers."""
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", self.version)
        is_old = found is not None and tuple(map(int, found.groups())) < _SPANS
        reuse = families.reuse(self.greedy, self.version)
        if self.streams_apart:  # a greedy answer is cut by the form that SGLang's have
            reuse = families.NONE
        return Server(
            self.engine,
            self.weight_version,
            names_spans=not is_old,
            streams_usage=self.streams_usage,
            reuse=reuse,
            fuses_scores=self.fuses_scores,
            has_workers=self.has_workers,
            streams_apart=self.streams_apart,
            keeps_answers=self.keeps_answers,
            dates_prompts=self.dates_prompts,
        )


def identify(
    info: Any,
    server: Any,
    models: Any,
    more: Mapping[str, Any] = MappingProxyType({}),
    moment: float | None = None,
) -> Identity | None:
    """Who answers, from the parsed `/model_info`, `/server_info` and `/v1/models`, each None where
    there is no such document. None if they name no model, or more than one for one name. `more` has
    what `neighbours.ROUTES` have answered, and `moment` is the Unix time of the list of models.

    The models count only where there is no info. A server whose `/server_info` is missing has
    another digest than with it: one that has it but did not answer is not to be identified.
    """
    if neighbours.is_ambiguous(more):
        return None
    said: dict[str, Any]
    version, engine = None, SGLANG
    if isinstance(info, dict) and (model := _name(info)):
        said = {"info": info, "server": server_keys.chosen(server)}
        version = info.get("weight_version")
    elif entries := neighbours.entries(models, moment):
        # Of the first as sent, which is the base model; its adapters follow.
        model = entries[0]["id"]
        said = {"models": sorted(entries, key=neighbours.model_id)}
        engine = neighbours.engine(entries[0], more)
    else:
        return None
    try:
        if further := neighbours.told(more):
            said["more"] = further
        return Identity(
            digest=_digest(said),
            model=model,
            weight_version=version if isinstance(version, str) else None,
            incarnation=_incarnation(server) or neighbours.process(more),
            engine=engine,
            version=str(_member(server, "version") or ""),
            streams_usage=_member(server, "stream_response_default_include_usage") is True,
            greedy=families.told(server, info),
            fuses_scores=_member(server, "enable_mis") is True,
            has_workers=neighbours.workers(more) > 1,
            streams_apart=engine != SGLANG or _is_relayed(server, more),
            keeps_answers=_member(server, "enable_response_store") is not False
            or _is_relayed(server, more),
            dates_prompts=_member(info, "model_type") in (None, "", "gpt_oss"),
        )
    except TypeError:
        # What can be read but not written: nested too deeply, integers beyond 64 bits. No
        # server says that. Not raised: an error's text may tell of the document.
        return None


def _member(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _name(info: dict[str, Any]) -> str:
    names = (info.get("served_model_name"), info.get("model_path"))
    return next((name for name in names if isinstance(name, str) and name), "")


def _is_relayed(server: Any, more: Mapping[str, Any]) -> bool:
    """Whether another program than SGLang's own Python server may write the answers."""
    frontend = _member(server, "frontend")
    return "/workers" in more or frontend not in (None, "python")


def _incarnation(server: Any) -> str:
    said = ((name, _member(server, name)) for name in _PROCESS_KEYS)
    process = {name: value for name, value in said if value is not None}
    return _digest(process) if process else ""


def _digest(value: Any) -> str:
    """32 hexadecimal digits of a JSON value, whatever the order of its keys."""
    return hex_digest(keys.write(value, option=orjson.OPT_SORT_KEYS))


def hex_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
