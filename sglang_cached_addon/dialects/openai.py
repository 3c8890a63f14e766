"""What OpenAI's completions and chat answers have in common: choices, and usage to be shared out.

Not a dialect. An answer for `n=1` is a sample; this module takes an answer of many choices
apart into such samples and puts them together again. SGLang 0.5.23 counts prompt tokens
once per prompt and sums completion tokens over all samples; a per-sample number that
cannot be known is split by length of text, with the total kept exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from sglang_cached_addon.dialects import base
from sglang_cached_addon.dialects.base import Call, Fill, Generation, Split
from sglang_cached_addon.policy import Reason, Refused

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "stream": (bool,),
    "stream_options": (dict, base.NULL),
    "user": (str, base.NULL),
    "session_id": (str, base.NULL),
    "priority": (int, base.NULL),
    "custom_labels": (dict, base.NULL),
}
"""Request identity, scheduling and framing: nothing of it reaches the model."""

# Reported for the first sample only, so other samples of the call have none to keep.
_FIRST_SAMPLE_ONLY = ("return_routed_experts",)


def probes(model: str, prompt: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """As `Dialect.probes`: a token is the least that all servers of these APIs generate."""
    named = {"model": model} if model else {}
    return ({**named, **prompt, "max_tokens": 1, "temperature": 0},)


def refuse_shared_report(body: dict[str, Any], total: int) -> None:
    """Raises `Refused` where an answer of many samples reports on one of them alone."""
    if total > 1 and any(body.get(name) for name in _FIRST_SAMPLE_ONLY):
        raise Refused(Reason.INSEPARABLE)


def split(
    fill: Fill,
    answer: Any,
    prompt_weights: Sequence[int],
    ids: Sequence[str] = (),
    tokens: Sequence[int] | None = None,
) -> Split:
    """Takes an answer apart into answers of one choice each.

    `prompt_weights` holds the length of each prompt that was sent, in the order of the fill;
    `ids` and `tokens` are each choice's own, as far as they are known.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        is_error = isinstance(answer, dict) and answer.get("error") is not None
        raise Refused(Reason.ERROR if is_error else Reason.UNREADABLE)
    choices = _in_order(answer["choices"], fill.total)
    refusal = Reason.ERROR if answer.get("error") is not None else None
    refusal = refusal or base.weights_refusal(answer.get("metadata"))
    for choice in choices:
        refusal = (
            refusal
            or base.finish_refusal(choice.get("finish_reason"))
            or base.weights_refusal(choice.get("meta_info"))
        )
    usages = split_usage(answer.get("usage"), choices, prompt_weights, fill.n, tokens)
    generations = []
    for k, (choice, usage) in enumerate(zip(choices, usages, strict=True)):
        sample = {**answer, "choices": [{**choice, "index": 0}]}
        if ids:
            sample["id"] = ids[k]
        if usage is not None:
            sample["usage"] = usage
        if _has_output_ids(answer):
            sample["sglext"] = {
                **answer["sglext"],
                "output_ids": answer["sglext"]["output_ids"][k : k + 1],
            }
        count = usage.get("completion_tokens") if usage else None
        generations.append(
            Generation(
                fill.order[k // fill.n],
                base.dump(sample),
                count if isinstance(count, int) else 0,
            )
        )
    metas = [answer.get("metadata"), *(choice.get("meta_info") for choice in choices)]
    return Split(tuple(generations), refusal, base.weight_versions(metas))


def aborted(call: Call, rid: str, now: float, kind: str, said: dict[str, Any]) -> bytes:
    """The answer of an API, `kind`, to a call that was aborted while it waited; `said` is where
    its text would be."""
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": "abort", "matched_stop": None}
    usage = {
        "prompt_tokens": 0,
        "total_tokens": 0,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }
    return base.dump(
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
    """SGLang's extension carries one list of ids for each choice."""
    sglext = answer.get("sglext")
    ids = sglext.get("output_ids") if isinstance(sglext, dict) else None
    return isinstance(ids, list) and len(ids) == len(answer["choices"])


def write(call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
    """One answer from `n` samples of each item; identity and metadata are the first one's."""
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
    return base.dump(merged)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Splits a whole number by weights; the parts sum to the total (largest remainders)."""
    if not sum(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    remainders = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in remainders[: total - sum(parts)]:
        parts[i] += 1
    return parts


def split_usage(
    usage: Any,
    choices: Sequence[dict[str, Any]],
    prompt_weights: Sequence[int],
    n: int,
    tokens: Sequence[int] | None = None,
) -> list[dict[str, Any] | None]:
    """Each choice's own `usage`: its prompt's tokens, and its share of what was generated."""
    if not isinstance(usage, dict):
        return [None] * len(choices)
    generated = tokens or [_generated_length(choice) for choice in choices]
    thoughts = [_message(choice).get("reasoning_content") for choice in choices]
    reasoned = [len(thought) if isinstance(thought, str) else 0 for thought in thoughts]
    shares = [dict(usage) for _ in choices]
    for name, value in usage.items():
        if name.startswith("prompt_tokens"):
            parts = _share(value, prompt_weights)
            parts = [parts[k // n] for k in range(len(choices))]
        elif "reasoning" in name or name == "completion_tokens_details":
            parts = _share(value, reasoned)
        else:
            parts = _share(value, generated)
        for share, part in zip(shares, parts, strict=True):
            share[name] = part
    for share in shares:
        _total(share)
    return list(shares)


def merge_usage(usages: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The `usage` of an answer from those of its samples, given by item."""
    firsts = [pool[0] for pool in usages]
    everyone = [usage for pool in usages for usage in pool]
    merged = {
        name: _sum(u.get(name) for u in (firsts if name.startswith("prompt_tokens") else everyone))
        for name in _names(everyone)
    }
    _total(merged)
    return merged


def _names(objects: Iterable[dict[str, Any]]) -> list[str]:
    """The names in any of the objects, in the order in which they come."""
    return list(dict.fromkeys(name for members in objects for name in members))


def _total(usage: dict[str, Any]) -> None:
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if "total_tokens" in usage and isinstance(prompt, int) and isinstance(completion, int):
        usage["total_tokens"] = prompt + completion


def _share(value: Any, weights: Sequence[int]) -> list[Any]:
    """A number, or each number of an object, split by weights; anything else is everybody's."""
    if type(value) is int:
        return list(apportion(value, weights))
    if isinstance(value, dict):
        columns = {name: _share(member, weights) for name, member in value.items()}
        return [{name: parts[i] for name, parts in columns.items()} for i in range(len(weights))]
    return [value] * len(weights)


def _sum(values: Iterable[Any]) -> Any:
    """The inverse of `_share`."""
    known = [value for value in values if value is not None]
    if known and all(type(value) is int for value in known):
        return sum(known)
    if known and all(isinstance(value, dict) for value in known):
        return {name: _sum(value.get(name) for value in known) for name in _names(known)}
    return known[0] if known else None


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    return message if isinstance(message, dict) else {}


def _generated_length(choice: dict[str, Any]) -> int:
    """Tokens where the choice tells them, else characters; comparable within an answer."""
    meta = choice.get("meta_info")
    if isinstance(meta, dict) and type(meta.get("completion_tokens")) is int:
        return int(meta["completion_tokens"])
    for name in ("token_ids", "response_token_ids"):
        if isinstance(choice.get(name), list):
            return len(choice[name])
    message = _message(choice)
    texts = (choice.get("text"), message.get("content"), message.get("reasoning_content"))
    calls = message.get("tool_calls")
    return sum(len(text) for text in texts if isinstance(text, str)) + (
        len(base.dump(calls)) if calls else 0
    )
