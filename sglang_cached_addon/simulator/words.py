"""Words, which are the tokens: ids, made-up sentences and arguments, log-probabilities. Pure."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

from sglang_cached_addon.simulator.profile import Json

Prompt = str | list[int]

_LEXICON = """
the of and to in is you that it he was for on are as with his they at be this have from or one
had by word but not what all were we when your can said there use an each which she do how their
if will up other about out many then them these so some her would make like him into time has
look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also
around form three small set put end does another well large must big even such because turn here
why ask went men read need land different home us move try kind hand picture again change off play
spell air away animal house point page letter mother answer found study still learn should world
"""
WORDS = _LEXICON.split()
FIRST_ID = 1000
"""The token id of WORDS[0]."""
EOS_ID = 2
_IDS = {word: FIRST_ID + place for place, word in enumerate(WORDS)}


def pieces(prompt: Prompt) -> list[str]:
    """The texts of a prompt's tokens; they join to the prompt's text."""
    if isinstance(prompt, str):
        return re.findall(r"\s*\S+(?:\s+$)?", prompt) or [prompt]
    words = [WORDS[number % len(WORDS)] for number in prompt]
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def token_ids(prompt: Prompt) -> list[int]:
    """One id per word: its place in WORDS, or a number made from its letters."""
    if not isinstance(prompt, str):
        return prompt
    words = [piece.strip() for piece in pieces(prompt)]
    return [_IDS.get(word, 2000 + zlib.crc32(word.encode()) % 30000) for word in words]


def speak(places: list[int], stops: list[str], lead: str) -> tuple[list[str], str, Json]:
    """Tokens (the first after `lead`) to the first stop string, the text before it, the finish."""
    tokens: list[str] = []
    text = ""
    for place in places:
        tokens.append((" " if tokens else lead) + WORDS[place])
        text += tokens[-1]
        hit = next((stop for stop in stops if stop and stop in text), None)
        if hit is not None:
            return tokens, text[: text.index(hit)], {"type": "stop", "matched": hit}
    return tokens, text, {"type": "length", "length": len(tokens)}


def arguments(schema: Json, dice: random.Random) -> str:
    """JSON arguments for a function with these parameters, one value per property."""
    makers: dict[str, Callable[[], Any]] = {
        "integer": lambda: dice.randrange(100),
        "number": lambda: dice.randrange(1000) / 10,
        "boolean": lambda: dice.random() < 0.5,
        "array": list,
        "object": dict,
    }
    properties = schema.get("properties") or {}
    return json.dumps(
        {
            name: makers.get(str(value.get("type")), lambda: dice.choice(WORDS))()
            for name, value in properties.items()
        }
    )


def likely(number: int, place: int, top: int) -> list[tuple[float, int]]:
    """The log-probability and id of a token, then those of less likely ones: `top`, at least 1."""
    first = -0.1 - (number * 7919 + place * 104729) % 3000 / 1000
    best = [(first, number)]
    for k in range(1, top):
        best.append((first - 0.5 * k, FIRST_ID + (number - FIRST_ID + 37 * k) % len(WORDS)))
    return best


def word(number: int) -> str:
    """A token's text, where only its id is known."""
    return f" {WORDS[(number - FIRST_ID) % len(WORDS)]}"


def scored(tokens: list[str], ids: list[int], since: int, top: int) -> list[Json]:
    """The tokens from `since` on with their probabilities, as the chat route names them."""

    def entry(text: str, value: float) -> Json:
        return {"token": text, "bytes": list(text.encode()), "logprob": value}

    found = []
    for place in range(since, len(tokens)):
        (value, _), *others = likely(ids[place], place, top)
        own = entry(tokens[place], value)
        tops = [own, *(entry(word(number), value) for value, number in others)]
        found.append({**own, "top_logprobs": tops[:top]})
    return found
