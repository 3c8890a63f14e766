"""Draws a whole sample: a pure function of profile, prompt and the number of the draw."""

from __future__ import annotations

import random
import re

from sglang_cached_addon.simulator import words
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json, Profile
from sglang_cached_addon.simulator.sample import Ask, Run

_LIMIT = 128
"""Tokens of a sample, where /generate is not told."""


def greedy(params: Json) -> bool:
    heat = params.get("temperature")
    return (heat is not None and heat < 1e-6) or params.get("top_k") == 1


def draw(ask: Ask, index: int, rid: str, profile: Profile, number: int, content: str = "") -> Run:
    """Sample `index` of a request; `number` is mixed in unless it is greedy.

    `content` is what else than seed, model and prompt decides what is said.
    """
    prompt, params = ask.prompts[index // ask.samples], ask.params[index // ask.samples]
    key = f"{profile.seed}|{profile.model}|{prompt!r}{content}"
    dice = random.Random(key if greedy(params) else f"{key}|{number}")
    limit = params.get("max_new_tokens")
    room = min(_LIMIT if limit is None else limit, CONTEXT_LENGTH - len(words.token_ids(prompt)))
    places = dice.choices(range(len(words.WORDS)), k=max(0, room))
    tokens, text, reason = words.speak(
        places, words.as_list(params.get("stop")), "" if ask.chat else " "
    )
    ids = [words.FIRST_ID + place for place in places[: len(tokens)]]
    run = Run(index, rid, prompt, tokens, ids, text, reason, profile.weight_version)
    if ask.thinks:
        run.thinking = (len(run.ids) + 1) // 2
    if ask.chat:
        _call(ask.body, run, dice)
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
        run.text = words.arguments(tool.get("parameters") or {}, dice)
        run.tokens = re.findall(r"\S+\s*", run.text)
        run.ids = [words.FIRST_ID + dice.randrange(len(words.WORDS)) for _ in run.tokens]
        run.reason = {"type": "stop", "matched": words.EOS_ID}
