"""What both /v1 sampling routes share: sampling fields, envelopes, token counts.

Pure but for new ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Ask, Run


def sampling(body: Json, limit: int) -> tuple[Json, int]:
    """The native sampling parameters of a body, and `n`."""
    n = int(body.get("n", 1))
    if n == 0 and not body.get("stream"):  # a stream does not count by strides of n
        raise Flaw("range() arg 3 must not be zero", "BadRequest")
    params = {"max_new_tokens": limit, "stop": body.get("stop"), "top_k": body.get("top_k")}
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            params[name] = float(body[name])
    return params, n


def envelope(ask: Ask, rid: str, kind: str, choices: list[Json]) -> Json:
    """A whole answer's first keys, or a stream event."""
    model = ask.body.get("model", "default")
    return {"id": rid, "object": kind, "created": ask.created, "model": model, "choices": choices}


def finish(run: Run) -> Json:
    """The end of a choice."""
    reason = run.reason if run.over else {"type": None}
    return {"finish_reason": reason["type"], "matched_stop": reason.get("matched")}


def answer(ask: Ask, runs: list[Run], kind: str, choice: Callable[[Ask, Run], Json]) -> Json:
    """The whole answer to a request without `stream`."""
    metadata = {}
    if runs:
        metadata = {
            "weight_version": runs[0].version,
            "weight_versions": runs[0].weight_versions(),
        }
    rid = runs[0].rid if runs else uuid.uuid4().hex
    choices = [choice(ask, run) for run in runs]
    counts = usage([runs[place] for place in range(0, len(runs), ask.n)], runs)
    return {**envelope(ask, rid, kind, choices), "usage": counts, "metadata": metadata}


def usage(firsts: list[Run], runs: list[Run]) -> Json:
    """Token counts: prompts of the first sample of each prompt, completions of all samples."""
    prompt = sum(run.prompt_tokens for run in firsts)
    completion, reasoning = sum(run.count for run in runs), sum(run.reasoning for run in runs)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "reasoning_tokens": reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning} if reasoning else None,
    }


def usage_so_far(ask: Ask, run: Run) -> Json | None:
    """The counts of one sample, if `continuous_usage_stats` asks for them."""
    wanted = (ask.body.get("stream_options") or {}).get("continuous_usage_stats")
    return usage([run], [run]) if wanted else None


def usage_events(ask: Ask, spoken: list[Run], kind: str, nulls: bool) -> Iterator[Json]:
    """The event that `include_usage` asks for, with or without the keys that are null."""
    if not (ask.body.get("stream_options") or {}).get("include_usage"):
        return
    counts = usage([run for run in spoken if run.index % ask.samples == 0], spoken)
    shown = {name: value for name, value in counts.items() if nulls or value is not None}
    yield {**envelope(ask, spoken[-1].rid if spoken else "", kind, []), "usage": shown}
