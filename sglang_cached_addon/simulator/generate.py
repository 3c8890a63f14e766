"""`/generate`: its body read and checked, its answers and stream events. Pure but for clocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from sglang_cached_addon.simulator.meta import meta_info
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.reading import as_list, list_of
from sglang_cached_addon.simulator.refusals import Flaw, Refusal, crash, flaw, invalid, none_of
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from sglang_cached_addon.simulator.words import Prompt

PATH = "/generate"
_KINDS: dict[str, type] = {"text": str, "rid": str, "sampling_params": dict}
_FIELD_NAMES = (
    "max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty "
    "presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag "
    "ignore_eos skip_special_tokens spaces_between_special_tokens no_stop_trim stream_interval "
    "logit_bias sampling_seed custom_params beam_width watermark choice"
)
_SAMPLING_FIELDS = _FIELD_NAMES.split()


def _check(body: Json) -> None:
    """What SGLang checks before it opens a stream: types, and names of sampling parameters."""
    if not isinstance(body.get("stream", False), bool):
        text = "Input should be a valid boolean, unable to interpret input"
        raise invalid(PATH, flaw("bool_parsing", ("stream",), text, body["stream"]))
    for name, kind in _KINDS.items():
        value = body.get(name)
        if not (value is None or isinstance(value, kind) or list_of(value, kind)):
            raise none_of(PATH, body, name, kind.__name__, f"list[{kind.__name__}]")
    for params in as_list(body.get("sampling_params")):
        for name, value in params.items():
            _check_param(name, value)


def _check_param(name: str, value: Any) -> None:
    if name not in _SAMPLING_FIELDS:
        expected = ", ".join(f"`{known}`" for known in _SAMPLING_FIELDS)
        raise Refusal(400, {"error": f"unknown field `{name}`, expected one of {expected}"})
    if name in ("n", "max_new_tokens") and type(value) not in (int, type(None)):
        told = {str: "string {}", float: "floating point `{}`"}.get(type(value), "`{}`")
        given = told.format(orjson.dumps(value).decode())
        raise Refusal(400, {"error": f"invalid type: {given}, expected i64"})


def read(body: Json) -> Ask:
    _check(body)
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
    if isinstance(params, list) and (not many or len(params) < len(prompts)):
        raise crash()
    each: list[Json] = params if isinstance(params, list) else [params] * len(prompts)
    wanted = [one.get("n", 1) for one in each] or [1]
    if None in wanted:
        raise crash()
    if len(set(wanted)) > 1:
        raise Flaw("The parallel_sample_num should be the same for all samples in sample params.")
    thinks = body.get("require_reasoning") is True
    return Ask(body, prompts, each, many, max(1, wanted[0]), thinks=thinks)


def _item(ask: Ask, run: Run, since: int = 0, stamped: bool = True) -> Json:
    """A sample, from token `since` on."""
    return {
        "text": run.said(since, run.count),
        "output_ids": run.ids[since : run.count],
        "meta_info": meta_info(ask, run, since, stamped),
    }


def answer(ask: Ask, runs: list[Run]) -> Any:
    items = [_item(ask, run) for run in runs]
    return items if ask.many or ask.n > 1 or not items else items[0]


def events(ask: Ask, run: Run, incremental: bool) -> Iterator[Json]:
    item = _item(ask, run, run.sent if incremental else 0, run.silent)
    yield {**item, "index": run.index} if ask.many or ask.n > 1 else item


GENERATE = Api(read, answer, events, lambda ask, ended: ())
