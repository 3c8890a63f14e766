"""`/v1/completions`: its body read and checked, its answers and stream events.

Pure but for clocks and new ids.
"""

from __future__ import annotations

from collections.abc import Iterator

from sglang_cached_addon.simulator import openai
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from sglang_cached_addon.simulator.words import pieces, scored, token_ids

PATH = "/v1/completions"
_KIND = "text_completion"


def read(body: Json) -> Ask:
    prompt = body["prompt"]
    if not prompt:
        raise Flaw("Prompt cannot be empty")
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts = prompt if many else [prompt]
    params, n = openai.sampling(body, int(body.get("max_tokens", 16)))
    model = str(body.get("model", "default"))
    return Ask(body, prompts, [params] * len(prompts), many, n, model=model)


def _logprobs(ask: Ask, run: Run, since: int, echo: bool) -> Json | None:
    if ask.body.get("logprobs") is None:
        return None
    top = int(ask.body["logprobs"])
    rows = scored(run.tokens[: run.count], run.ids, since, top)
    if echo and top:
        rows = scored(pieces(run.prompt), token_ids(run.prompt), 0, top) + rows
        rows[0].update(logprob=None, top_logprobs=None)
    if ask.stream and not rows:
        return None
    tops = [row["top_logprobs"] for row in rows]
    return {
        "text_offset": [-1] * len(rows),
        "token_logprobs": [row["logprob"] for row in rows],
        "tokens": [row["token"] for row in rows],
        "top_logprobs": [t and {e["token"]: e["logprob"] for e in t} for t in tops] if top else [],
    }


def _choice(ask: Ask, run: Run, since: int = 0) -> Json:
    """A choice, whole or from token `since` on."""
    echo = bool(ask.body.get("echo")) and since == 0
    ids: Json = {}
    if ask.body.get("return_token_ids"):
        prompt = {} if since else {"prompt_token_ids": token_ids(run.prompt)}
        ids = {"token_ids": run.ids[since : run.count], **prompt}
    return {
        "index": run.index,
        "text": ("".join(pieces(run.prompt)) if echo else "") + run.said(since, run.count),
        "logprobs": _logprobs(ask, run, since, echo),
        **openai.finish(run),
        **ids,
    }


def answer(ask: Ask, runs: list[Run]) -> Json:
    return openai.answer(ask, runs, _KIND, _choice)


def events(ask: Ask, run: Run) -> Iterator[Json]:
    choices = [_choice(ask, run, run.sent)]
    counts = openai.usage_so_far(ask, run)
    yield {**openai.envelope(ask, run.rid, _KIND, choices), "usage": counts}


def last_events(ask: Ask, spoken: list[Run]) -> Iterator[Json]:
    return openai.usage_events(ask, spoken, _KIND, nulls=False)


COMPLETIONS = Api(read, answer, events, last_events)
