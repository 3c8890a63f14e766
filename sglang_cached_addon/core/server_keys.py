"""Which settings of an SGLang server an answer depends on.

Pure: names, and what is chosen by them of what the server says.
"""

from __future__ import annotations

from typing import Any

SERVER_KEYS = frozenset(
    {
        # which weights and which tokenizer, and how they are read
        "model_path",
        "served_model_name",
        "revision",
        "load_format",
        "model_impl",
        "json_model_override_args",
        "tokenizer_path",
        "tokenizer_mode",
        "tokenizer_backend",
        "skip_tokenizer_init",
        "mm_process_config",
        # numbers: another of these gives other logits
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "attention_backend",
        "prefill_attention_backend",
        "decode_attention_backend",
        "sampling_backend",
        "enable_deterministic_inference",
        "enable_fp32_lm_head",
        "rl_on_policy_target",
        "tp_size",
        "pp_size",
        # the prompt, and where it ends
        "chat_template",
        "hf_chat_template_name",
        "default_chat_template_kwargs",
        "completion_template",
        "context_length",
        "allow_auto_truncate",
        # what may be sampled
        "sampling_defaults",
        "preferred_sampling_params",
        "grammar_backend",
        "constrained_json_whitespace_pattern",
        "constrained_json_disable_any_whitespace",
        "constrained_json_max_whitespace_cnt",
        "enable_strict_thinking",
        "enable_watermark",
        "watermark_default_enabled",
        "watermark_enforce_all",
        # how the answer is written
        "reasoning_parser",
        "tool_call_parser",
        "enable_cache_report",
        "return_input_ids",
        "return_output_ids",
        "incremental_streaming_output",
        "stream_response_default_include_usage",
        # which program
        "version",
        "frontend",
    }
)
"""The keys of `/server_info` that an answer depends on; the `SERVER_PREFIXES` are more of them.

What is left out, though it looks alike:
- `max_total_num_tokens`, and what follows from it: it bounds very long answers, but differs by
  a few tokens from one start to the next on the same machine, and would empty the cache.
- `random_seed` and `startup_time`, which name the process (`Identity.incarnation`).
- `weight_version`: `/model_info` has the one that counts, this is the one of the start.
- `lora_paths` and the like: adapters come and go, and have epochs of their own.
- keys, hosts, ports, logs, live state (`internal_states`), the command line that has them all.
"""

SERVER_FLAGS = frozenset({"enable_mis"})
"""Keys that count where they are true, so that other servers keep the names that they had before
these were known."""

SERVER_PREFIXES = ("speculative_",)
"""A draft model and its thresholds decide which of the likely tokens are taken."""


def chosen(server: Any) -> dict[str, Any]:
    """What of a parsed `/server_info` an answer depends on."""
    if not isinstance(server, dict):
        return {}
    return {
        name: value
        for name, value in server.items()
        if name in SERVER_KEYS
        or name.startswith(SERVER_PREFIXES)
        or (name in SERVER_FLAGS and value is True)
    }
