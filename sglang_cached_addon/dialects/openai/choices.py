"""Answers of many choices to samples, and back.

Pure. An answer for `n=1` is a sample. SGLang 0.5.23 counts prompt tokens once per prompt and sums
completion tokens over all samples; `shares` finds each one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall, take_out
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.openai import shares


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a stream tells beside its choices. Each sequence is empty, or has one entry a choice."""

    ids: Sequence[str] = ()
    """The id that each choice's chunks have."""
    usages: Sequence[dict[str, Any] | None] = ()
    """The last usage that each choice's chunks have told."""
    members: Sequence[dict[str, Any]] = ()
    """Members of the answer that came with each choice's own chunks."""


def split(
    sent: UpstreamCall,
    answer: Any,
    prompts: Sequence[Any],
    told: StreamFacts | None = None,
    limit: Any = None,
) -> Split:
    """Takes an answer apart into answers of one choice each.

    `prompts` are those that were sent, in the order of the upstream call; `limit` is the number of
    tokens that a choice has at most."""
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
    told = told or StreamFacts()
    choices = _in_order(answer["choices"], sent.total)
    usages, is_exact = shares.of(
        answer.get("usage"), choices, prompts, sent.n, told.usages, limit=limit
    )
    generations = []
    for k, (choice, usage) in enumerate(zip(choices, usages, strict=True)):
        count = usage.get("completion_tokens") if usage else None
        sample = judging.dump(_sample(sent, answer, told, k, choice, usage))
        tokens = count if isinstance(count, int) else 0
        generations.append(Generation(sent.order[k // sent.n], sample, tokens))
    metas = [answer.get("metadata"), *(choice.get("meta_info") for choice in choices)]
    refusal = _refusal(answer, choices) or (None if is_exact else Reason.SHARED_USAGE)
    return Split(tuple(generations), refusal, judging.weight_versions(metas))


def _refusal(answer: dict[str, Any], choices: Iterable[dict[str, Any]]) -> Reason | None:
    """Why no sample of an answer may be stored, whatever its usage."""
    if judging.is_error(answer):
        return Reason.ERROR
    refusal = judging.weights_refusal(answer.get("metadata"))
    for choice in choices:
        refusal = (
            refusal
            or judging.finish_refusal(choice.get("finish_reason"))
            or judging.weights_refusal(choice.get("meta_info"))
        )
    return refusal


def _sample(
    sent: UpstreamCall,
    answer: dict[str, Any],
    told: StreamFacts,
    k: int,
    choice: dict[str, Any],
    usage: dict[str, Any] | None,
) -> dict[str, Any]:
    """The answer that has choice k alone."""
    sample = {**answer, **(told.members[k] if told.members else {})}
    sample["choices"] = [{**choice, "index": 0}]
    for members in (sample, sample["choices"][0]):
        take_out(sent, members)
    if told.ids:
        sample["id"] = told.ids[k]
    if usage is not None:
        sample["usage"] = usage
    if usage and type(usage.get("completion_tokens")) is int and "metadata" in answer:
        sample["metadata"] = _metadata(answer["metadata"], usage["completion_tokens"])
    if _has_output_ids(answer):
        ids = answer["sglext"]["output_ids"][k : k + 1]
        sample["sglext"] = {**answer["sglext"], "output_ids": ids}
    return sample


def metadata(server: Server) -> dict[str, Any]:
    """The `metadata` that SGLang has in a JSON answer and not in a stream, without the number of
    tokens."""
    if server.engine != SGLANG:
        return {}
    if server.weight_version is None:
        return {"metadata": None}
    said: dict[str, Any] = {"weight_version": server.weight_version}
    if server.names_spans:
        said["weight_versions"] = [{"version": server.weight_version, "start": 0, "end": 0}]
    return {"metadata": said}


def _metadata(metadata: Any, tokens: Any) -> Any:
    """The `metadata` for a choice of so many tokens; SGLang's own is about the first choice."""
    spans = metadata.get("weight_versions") if isinstance(metadata, dict) else None
    if not isinstance(spans, list) or len(spans) != 1 or not isinstance(spans[0], dict):
        return metadata
    return {**metadata, "weight_versions": [{**spans[0], "end": tokens}]}


def aborted(call: Call, rid: str, now: float, kind: str, said: dict[str, Any]) -> bytes:
    """The answer to a call that was aborted while it waited. `kind` is its `object`, `said` the
    member that would have its text."""
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": "abort", "matched_stop": None}
    usage = {
        "prompt_tokens": 0,
        "total_tokens": 0,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }
    return judging.dump(
        {
            "id": rid,
            "object": kind,
            "created": int(now),
            "model": call.body.get("model", "default"),
            "choices": [choice],
            "usage": usage,
            "metadata": None,
        }
    )


def _in_order(choices: list[Any], total: int) -> list[dict[str, Any]]:
    """The choices by index: each from 0 to total - 1, exactly once."""
    if not all(isinstance(c, dict) and type(c.get("index")) is int for c in choices):
        raise Refused(Reason.UNREADABLE)
    by_index = {choice["index"]: choice for choice in choices}
    if len(choices) != total or set(by_index) != set(range(total)):
        raise Refused(Reason.UNREADABLE)
    return [by_index[k] for k in range(total)]


def _has_output_ids(answer: dict[str, Any]) -> bool:
    """Whether SGLang's extension has a list of ids for each choice."""
    sglext = answer.get("sglext")
    ids = sglext.get("output_ids") if isinstance(sglext, dict) else None
    return isinstance(ids, list) and len(ids) == len(answer["choices"])


def write(call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
    """One answer from `n` samples of each item; its other members are those of the first sample."""
    if call.total == 1 and not call.rids:
        return samples[0][0]
    answers = [[orjson.loads(sample) for sample in pool] for pool in samples]
    flat = [answer for pool in answers for answer in pool]
    merged: dict[str, Any] = flat[0]
    choices = [answer["choices"][0] for answer in flat]
    for k, choice in enumerate(choices):
        choice["index"] = k
    if call.rids:
        merged["id"] = call.rids[0]
        for choice, rid in zip(choices, call.rids, strict=True):
            if isinstance(choice.get("meta_info"), dict):
                choice["meta_info"]["id"] = rid
    if all(isinstance(answer.get("usage"), dict) for answer in flat):
        merged["usage"] = merge_usage([[answer["usage"] for answer in pool] for pool in answers])
    if all(_has_output_ids(answer) for answer in flat):
        merged["sglext"] = {
            **merged["sglext"],
            "output_ids": [answer["sglext"]["output_ids"][0] for answer in flat],
        }
    merged["choices"] = choices
    return judging.dump(merged)


def merge_usage(usages: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The `usage` of an answer from those of its samples, which are given by item."""
    firsts = [pool[0] for pool in usages]
    everyone = [usage for pool in usages for usage in pool]
    merged = {
        name: _sum(u.get(name) for u in (firsts if name.startswith("prompt_tokens") else everyone))
        for name in _names(everyone)
    }
    shares.recount(merged)
    return merged


def _names(objects: Iterable[dict[str, Any]]) -> list[str]:
    """The names in any of the objects, in the order in which they come."""
    return list(dict.fromkeys(name for members in objects for name in members))


def _sum(values: Iterable[Any]) -> Any:
    """The sum of numbers, or an object with the sums of its members."""
    known = [value for value in values if value is not None]
    if known and all(type(value) is int for value in known):
        return sum(known)
    if known and all(isinstance(value, dict) for value in known):
        return {name: _sum(value.get(name) for value in known) for name in _names(known)}
    return known[0] if known else None
