"""Bodies of SGLang's `/generate`: how many prompts, how many samples, which lists are per prompt.

Pure: takes parsed JSON, raises `Refused` for what SGLang would refuse or read otherwise.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import reading

PROMPTS = ("text", "input_ids", "input_embeds")

# In a batch a list in one of these holds a value for each prompt.
_PER_ITEM = (
    *PROMPTS,
    "sampling_params",
    "rid",
    "lora_path",
    "extra_key",
    "cache_salt",
    "watermark",
    "return_hidden_states",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "return_sampling_mask",
    "sampling_logprobs_mode",
    "custom_logit_processor",
)

# ... but in these only with n=1: SGLang refuses the list otherwise.
_PER_ITEM_N1 = frozenset(_PER_ITEM[_PER_ITEM.index("return_logprob") :])

MEDIA = ("image_data", "video_data", "audio_data")

# A lone prompt with n=1 and any other form read these differently, so samples of one form
# must not serve the other.
FORM_DEPENDENT = (
    *MEDIA,
    "mm_hashes",
    "mm_content_hashes",
    "modalities",
    "use_audio_in_video",
    "video_config",
    "images_config",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "image_max_dynamic_patch",
    "video_max_dynamic_patch",
    "positional_embed_overrides",
    "lora_id",
    "multi_item_delimiter_indices",
    "token_indices_to_pool",
)


def batch_size(body: dict[str, Any]) -> int | None:
    """How many prompts the list has; None for a single one."""
    sizes = {_prompt_count(name, body[name]) for name in PROMPTS if body.get(name) is not None}
    if len(sizes) != 1:  # no prompt, or two that disagree
        raise Refused(Reason.MALFORMED)
    return sizes.pop()


def _prompt_count(name: str, value: Any) -> int | None:
    if name == "text":
        if isinstance(value, str):
            return None
        if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return len(value)
        raise Refused(Reason.MALFORMED)
    depth = 1 if name == "input_ids" else 2
    if _is_numbers(value, depth, name):
        return None
    if isinstance(value, list) and value and all(_is_numbers(v, depth, name) for v in value):
        return len(value)
    raise Refused(Reason.MALFORMED)


def _is_numbers(value: Any, depth: int, name: str) -> bool:
    """Whether a value is a list of numbers, nested `depth` deep and not empty."""
    if not isinstance(value, list) or not value:
        return False
    if depth > 1:
        return all(_is_numbers(v, depth - 1, name) for v in value)
    return set(map(type, value)) <= ({int} if name == "input_ids" else {int, float})


def read_n(params: Any, size: int | None) -> int:
    if params is None:
        return 1
    if isinstance(params, dict):
        return _one_n(params)
    each = params if isinstance(params, list) and size is not None else [params]
    if (each is params and len(each) != size) or not all(isinstance(p, dict) for p in each):
        raise Refused(Reason.MALFORMED)
    counts = {_one_n(p) for p in each}
    if len(counts) != 1:  # SGLang refuses a batch of mixed n
        raise Refused(Reason.MALFORMED)
    return counts.pop()


def _one_n(params: dict[str, Any]) -> int:
    n = reading.read_n(params)
    if params.get("beam_width") not in (None, 1):
        raise Refused(Reason.BEAM)
    return n


def per_item_lists(body: dict[str, Any], size: int | None, n: int) -> tuple[str, ...]:
    """The fields of a body whose list holds a value for each prompt."""
    lists = [name for name, value in body.items() if isinstance(value, list)]
    if size is None:
        # Lists around a lone prompt (of parameters, adapters, ...) are upstream's to judge.
        if any(name in _PER_ITEM and name not in (*PROMPTS, "token_ids_logprob") for name in lists):
            raise Refused(Reason.MALFORMED)
        return ()
    found = []
    for name in lists:
        if name == "token_ids_logprob" and not isinstance(next(iter(body[name]), None), list):
            continue  # one list of ids, for all prompts
        if name not in _PER_ITEM:
            raise Refused(Reason.INSEPARABLE)
        if len(body[name]) != size or (n > 1 and name in _PER_ITEM_N1):
            raise Refused(Reason.MALFORMED)
        found.append(name)
    return tuple(found)


def without_n(content: dict[str, Any]) -> dict[str, Any]:
    params = content.get("sampling_params")
    if isinstance(params, list):
        return {**content, "sampling_params": [_but_n(each) for each in params]}
    return {**content, "sampling_params": _but_n(params)} if isinstance(params, dict) else content


def _but_n(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "n"}
