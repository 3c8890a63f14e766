"""Draws a whole sample: a pure function of profile, prompt and the number of the draw."""

from __future__ import annotations

import random
import re

from sglang_cached_addon.simulator.profile import (
    CONTENT,
    CONTEXT_LENGTH,
    Fault,
    Json,
    Profile,
)
from sglang_cached_addon.simulator.reading import as_list
from sglang_cached_addon.simulator.sample import Ask, Run
from sglang_cached_addon.simulator.words import EOS_ID, FIRST_ID, WORDS, arguments, speak, token_ids

_LIMIT = 128  # tokens, where /generate is not told
_PLAIN = Profile()


def greedy(params: Json) -> bool:
    heat = params.get("temperature")
    return (heat is not None and heat < 1e-6) or params.get("top_k") == 1


def _spoken_by(profile: Profile, adapter: str) -> str:
    """What else than seed, model and prompt decides what is said; nothing if all is usual."""
    found = {name: getattr(profile, name) for name in CONTENT}
    other = {name: value for name, value in found.items() if value != getattr(_PLAIN, name)}
    return f"|{other}|{adapter}" if other or adapter else ""


def draw(
    ask: Ask,
    index: int,
    rid: str,
    profile: Profile,
    adapter: str = "",
    number: int = 0,
    fault: Fault | None = None,
) -> Run:
    """Sample `index` of a request; `number` is mixed in unless it is greedy.

    `adapter` is all that is to be known of the adapter, if one was asked for.
    """
    prompt, params = ask.prompts[index // ask.samples], ask.params[index // ask.samples]
    key = f"{profile.seed}|{profile.model}|{prompt!r}{_spoken_by(profile, adapter)}"
    dice = random.Random(key if greedy(params) else f"{key}|{number}")
    limit = params.get("max_new_tokens")
    room = min(_LIMIT if limit is None else limit, CONTEXT_LENGTH - len(token_ids(prompt)))
    places = dice.choices(range(len(WORDS)), k=room)
    tokens, text, reason = speak(places, as_list(params.get("stop")), "" if ask.chat else " ")
    ids = [FIRST_ID + place for place in places[: len(tokens)]]
    version = profile.weight_version
    spans = [(version, 1.0)]
    if fault is Fault.TWO_WEIGHTS:
        spans = [(version, 0.5), (f"{version}-next", 1.0)]
    if fault is Fault.OTHER_VERSION:
        spans = [(f"{version}-other", 1.0)]
    run = Run(index, rid, prompt, tokens, ids, text, reason, spans)
    if ask.thinks:
        run.thinking = (len(run.ids) + 1) // 2
    if ask.chat:
        _call(ask.body, run, dice)
    if fault is Fault.ABORT:
        run.shorten(len(run.ids) // 2)
    return run


def _call(body: Json, run: Run, dice: random.Random) -> None:
    """Turn a sample into a tool call, if asked."""
    choice = body.get("tool_choice")
    named = isinstance(choice, dict) and choice.get("function", {}).get("name")
    tools = [tool["function"] for tool in body.get("tools") or []]
    fitting = [tool for tool in tools if not named or tool["name"] == named]
    if fitting and (choice == "required" or named):
        tool = dice.choice(fitting)
        run.tool, run.thinking = tool["name"], 0
        run.text = arguments(tool.get("parameters") or {}, dice)
        run.tokens = re.findall(r"\S+\s*", run.text)
        run.ids = [FIRST_ID + dice.randrange(len(WORDS)) for _ in run.tokens]
        run.reason = {"type": "stop", "matched": EOS_ID}
