"""`/generate`: its body read and checked, its answers and stream events. Pure but for clocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang_cached_addon.simulator.meta import meta_info
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from sglang_cached_addon.simulator.words import Prompt

PATH = "/generate"


def read(body: Json) -> Ask:
    text: Any = body.get("text")
    ids: Any = body.get("input_ids")
    if text is None and ids is None:
        raise Flaw("Either text, input_ids or input_embeds should be provided.")
    if ids is not None and not ids:
        raise Flaw("input_ids cannot be empty.")
    many = isinstance(text, list) if ids is None else isinstance(ids[0], list)
    given = text if ids is None else ids
    prompts: list[Prompt] = given if many else [given]
    params: Any = body.get("sampling_params") or {}
    each: list[Json] = params if isinstance(params, list) else [params] * len(prompts)
    wanted = [int(one.get("n", 1)) for one in each] or [1]
    if len(set(wanted)) > 1:
        raise Flaw("The parallel_sample_num should be the same for all samples in sample params.")
    thinks = body.get("require_reasoning") is True
    return Ask(body, prompts, each, many, max(1, wanted[0]), thinks=thinks)


def _item(ask: Ask, run: Run, stamped: bool = True) -> Json:
    """A sample so far."""
    return {
        "text": run.said(0, run.count),
        "output_ids": run.ids[: run.count],
        "meta_info": meta_info(ask, run, stamped),
    }


def answer(ask: Ask, runs: list[Run]) -> Any:
    items = [_item(ask, run) for run in runs]
    return items if ask.many or ask.n > 1 or not items else items[0]


def events(ask: Ask, run: Run) -> Iterator[Json]:
    item = _item(ask, run, run.silent)
    yield {**item, "index": run.index} if ask.many or ask.n > 1 else item


GENERATE = Api(read, answer, events, lambda ask, ended: ())
