"""The native `meta_info` of a sample, which the chat route can show too. Pure but for clocks."""

from __future__ import annotations

import time
from typing import Any

from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.sample import Ask, Run
from sglang_cached_addon.simulator.words import likely, pieces, token_ids, word


def meta_info(ask: Ask, run: Run, stamped: bool = True) -> Json:
    """`meta_info` after `run.count` tokens."""
    stamp = {"response_sent_to_client_ts": time.time()} if stamped else {}
    ended: Json = {}
    latency: Json = {}
    if run.over:
        ended = {"weight_versions": run.weight_versions()}
        latency = {"e2e_latency": time.perf_counter() - run.started}
    return {
        "id": run.rid,
        "finish_reason": run.reason if run.over else None,
        "prompt_tokens": run.prompt_tokens,
        "weight_version": run.version,
        "num_retractions": 0,
        **_logprobs(ask, run),
        "reasoning_tokens": run.reasoning,
        "completion_tokens": run.count,
        "cached_tokens": 0,
        **ended,
        "cached_tokens_details": None,
        "dp_rank": None,
        **latency,
        **stamp,
    }


def _logprobs(ask: Ask, run: Run) -> Json:
    if not ask.item("return_logprob", run, False):
        return {}
    top = int(ask.item("top_logprobs_num", run, 0))
    start = int(ask.item("logprob_start_len", run, -1))
    texts = bool(ask.body.get("return_text_in_logprobs"))
    ids = token_ids(run.prompt)
    begin = start if start >= 0 else len(ids)
    given, given_top = _rows(pieces(run.prompt), ids, begin, top, texts)
    if given:  # nothing comes before the first token that could make it likely
        given[0][0], given_top[0] = None, None
    own, own_top = _rows(run.tokens, run.ids[: run.count], 0, top, texts)
    answer = {
        "input_token_logprobs": given,
        "output_token_logprobs": own,
        "output_token_logprobs_length": run.count,
    }
    if top:
        answer |= {"input_top_logprobs": given_top, "output_top_logprobs": own_top}
    return answer


def _rows(
    tokens: list[str], ids: list[int], begin: int, top: int, texts: bool
) -> tuple[list[Any], list[Any]]:
    """[logprob, id, text] of the tokens from `begin` on, and the `top` such rows of each."""
    own, tops = [], []
    for place in range(begin, len(ids)):
        best = likely(ids[place], place, top)
        own.append([best[0][0], ids[place], tokens[place] if texts else None])
        tops.append([[value, i, word(i) if texts else None] for value, i in best[:top]])
    return own, tops
