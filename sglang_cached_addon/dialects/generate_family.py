"""Families of greedy `/generate` calls: which call of one it is, and how an answer is cut.

Pure. Checked against SGLang 0.5.23 (detokenizer_manager.py, schedule_batch.py).
"""

from __future__ import annotations

from math import inf
from typing import Any

from sglang_cached_addon.core.families import Ended, Variant, limit_of, named
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import cutting
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.generate_stream import BY_TOKEN

_SCORES = {
    "return_logprob": bool,
    "logprob_start_len": int,
    "top_logprobs_num": int,
    "token_ids_logprob": list,
    "return_text_in_logprobs": bool,
}
"""The fields that ask for log-probabilities, each with its JSON type."""
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_PARAMS = (
    *("max_new_tokens", "min_new_tokens", "n", "ignore_eos", "sampling_seed", "stream_interval"),
    *("temperature", "top_p", "top_k", "min_p", "logit_bias"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("stop", "stop_token_ids", "stop_regex", "no_stop_trim"),
    *("skip_special_tokens", "spaces_between_special_tokens", *_GRAMMARS),
)
_LIMIT = 128
"""How many tokens an answer has at most where the call does not say."""


class Family:
    """The families of `/generate`."""

    def __init__(self, transport: Any) -> None:
        """`transport` are the fields that are in no key."""
        prompt = ("text", "input_ids", "lora_path", "extra_key", "cache_salt")
        self._known = (*transport, *prompt, "sampling_params", *_SCORES)

    def variant(self, body: Json) -> Variant | None:
        params, wants = body.get("sampling_params"), body.get("return_logprob")
        scores = {name: body[name] for name in _SCORES if name in body}
        if any(value is not None and type(value) is not _SCORES[n] for n, value in scores.items()):
            return None
        if not isinstance(params, dict) or (scores.get("token_ids_logprob") and not wants):
            return None
        if cutting.has_others(body, self._known) or cutting.has_others(params, _PARAMS):
            return None
        if scores.get("logprob_start_len") not in (None, -1):
            return None  # the prompt is read otherwise for these
        given = params.get("max_new_tokens", _LIMIT)
        limit, least = inf if given is None else limit_of(given), params.get("min_new_tokens") or 0
        if limit is None or type(least) is not int:
            return None
        limits = {n: v for n, v in params.items() if n == "max_new_tokens"}
        has_grammar = any(params.get(name) for name in _GRAMMARS)
        asked = named(scores) if wants else b""
        return Variant(limit, limits | scores, asked, least, has_grammar)

    def ask(self, body: Json, fields: Json) -> Json:
        params = {n: v for n, v in body["sampling_params"].items() if n != "max_new_tokens"}
        if "max_new_tokens" in fields:
            params["max_new_tokens"] = fields["max_new_tokens"]
        others = {name: value for name, value in body.items() if name not in _SCORES}
        scores = {name: value for name, value in fields.items() if name in _SCORES}
        return {**others, "sampling_params": params, **scores}

    def ended(self, answer: Json) -> Ended | None:
        meta, ids = answer["meta_info"], answer.get("output_ids")
        tokens, prompt = meta.get("completion_tokens"), meta.get("prompt_tokens")
        if type(tokens) is not int or type(prompt) is not int or meta.get("reasoning_tokens"):
            return None
        if not isinstance(ids, list) or len(ids) != tokens or type(answer.get("text")) is not str:
            return None
        return Ended(tokens, prompt, meta["finish_reason"]["type"] == "stop")

    def text(self, answer: Json) -> str:
        text: str = answer["text"]
        return text

    def text_at(self, answer: Json, steps: list[Any] | None, count: int) -> str | None:
        if isinstance(answer["meta_info"]["finish_reason"].get("matched"), str):
            return None  # the text was trimmed
        # An event may have ids that it does not count: who knows of its text?
        counted = [step for step in (steps or [{}])[1:] if step[2:3] in ([], [step[1]])]
        marks = [(step[0], step[1]) for step in counted]
        if any(type(characters) is not int for characters, _ in marks):
            return None  # text was taken back
        return cutting.text_at(answer["text"], marks, count)

    def spelling(self, body: Json, answer: Json, count: int) -> Json | None:
        params, ids = body["sampling_params"], answer["output_ids"]
        matched = answer["meta_info"]["finish_reason"].get("matched")
        if params.get("spaces_between_special_tokens") not in (None, True):
            return None
        is_trimmed = type(matched) is int and not params.get("no_stop_trim")
        skips = params.get("skip_special_tokens")
        tokens = [ids[:count], ids[:-1] if is_trimmed else ids]
        return {"tokens": tokens, "skip_special_tokens": skips is None or skips}

    def cut(self, answer: Json, steps: list[Any] | None, count: int, text: str) -> list[Any] | None:
        meta = answer["meta_info"]
        if any(len(meta[name]) != len(answer["output_ids"]) for name in BY_TOKEN if meta.get(name)):
            raise Refused(Reason.UNREADABLE)
        answer["text"], answer["output_ids"] = text, answer["output_ids"][:count]
        meta["finish_reason"] = {"type": "length", "length": count}
        meta["completion_tokens"] = count
        for name in BY_TOKEN:
            if name in meta:
                meta[name] = meta[name] and meta[name][:count]
        if "output_token_logprobs_length" in meta:
            meta["output_token_logprobs_length"] = count
        if "weight_versions" in meta:
            meta["weight_versions"] = cutting.with_end(meta["weight_versions"], count)
        style, *others = steps or [{}]
        kept = [step for step in others if step[1] < count]
        return [style, *kept] if kept else None

    def without_scores(self, answer: Json, steps: list[Any] | None) -> list[Any] | None:
        meta = answer["meta_info"]
        for name in list(meta):
            if "logprobs" in name and name.startswith(("input_", "output_")):
                del meta[name]
        return steps
