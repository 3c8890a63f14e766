"""The tables of `docs/fields.md`, and what to send for each field in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs/fields.md"
PARAMS = "sampling_params"

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What the page says of one field of one API."""

    path: str
    name: str
    said: str
    """What it is, as the page has it."""
    holder: str = ""
    """The member of the body that has it; empty at the top level."""

    @property
    def kind(self) -> str:
        """The first word of that."""
        return self.said.partition(",")[0].partition(" ")[0]

    @property
    def reason(self) -> str:
        """Why it is a bypass; empty where it is none."""
        found = re.fullmatch(r"bypass `(.+)`", self.said)
        return found[1] if found else ""

    def body(self, **more: Any) -> Json:
        """A call of the API without the field."""
        return {**BASES[self.path], **more}

    def given(self, **more: Any) -> Json:
        """The same with it."""
        body, value = self.body(**more), VALUES.get(self.name, "x")
        if self.holder:
            return {**body, self.holder: {**body[self.holder], self.name: value}}
        body.pop(INSTEAD.get((self.path, self.name), ""), None)
        return {**body, self.name: OWN.get((self.path, self.name), value)}


def rows() -> Iterator[Row]:
    """Those of all tables of the page that are about fields."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]
    for title, _, text in (section.partition("\n") for section in sections):
        paths, holder = re.findall(r"`(/[^`]+)`", title), PARAMS if PARAMS in title else ""
        for names, said in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", text, re.M):
            if paths:
                for name in re.findall(r"`(\w+)`", names):
                    yield from (Row(path, name, said, holder) for path in paths)


CHAT = [{"role": "user", "content": "a"}]
SCORED: Json = {"id": "q", "type": "score", "question": "a", "levels": ["0", "1"]}
BASES: dict[str, Json] = {
    "/generate": {"text": "a", PARAMS: {"temperature": 0.5}},
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/messages": {"model": "m", "max_tokens": 4, "messages": CHAT},
    "/v1/messages/count_tokens": {"model": "m", "messages": CHAT},
    "/v1/responses": {"model": "m", "input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/encode": {"text": "a"},
    "/classify": {"text": "a"},
    "/v1/classify": {"input": "a"},
    "/v1/score": {"query": "a", "items": ["a"], "label_token_ids": [1]},
    "/v1/rerank": {"query": "a", "documents": ["a"]},
    "/v1/decisions": {"input": "a", "questions": [SCORED]},
    "/v1/systemone": {"state": "a", "model": "m", "questions": {"q": {"type": "score"}}},
    "/v1/tokenize": {"prompt": "a"},
    "/tokenize": {"prompt": "a"},
    "/v1/detokenize": {"tokens": [1]},
    "/detokenize": {"tokens": [1]},
}
"""The smallest call of each API."""

LISTS: dict[str, Json] = {
    "/generate": {"text": ["a", "b"]},
    "/v1/completions": {"prompt": ["a", "b"]},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/encode": {"text": ["a", "b"]},
    "/classify": {"text": ["a", "b"]},
    "/v1/classify": {"input": ["a", "b"]},
    "/v1/score": {"items": ["a", "b"]},
    "/v1/rerank": {"documents": ["a", "b"]},
    "/v1/decisions": {"questions": [SCORED, {**SCORED, "id": "r"}]},
    "/v1/tokenize": {"prompt": ["a", "b"]},
    "/tokenize": {"prompt": ["a", "b"]},
    "/v1/detokenize": {"tokens": [[1], [2]]},
    "/detokenize": {"tokens": [[1], [2]]},
}
"""What makes it one for a list."""

DATA = "data:image/png;base64,AAAA"
SAID = [{"role": "user", "content": "b"}]
WHOLE = ("n", "top_k", "max_new_tokens", "min_new_tokens", "max_tokens", "min_tokens", "seed")
VALUES: Json = {
    **dict.fromkeys((*WHOLE, "priority", "routed_dp_rank", "data_parallel_rank", "beam_width"), 2),
    **dict.fromkeys(("temperature", "top_p", "min_p", "received_time"), 0.25),
    **dict.fromkeys(("stream", "log_metrics", "no_logs", "background", "use_beam_search"), True),
    **dict.fromkeys(("echo", "return_cached_tokens_details", "return_spec_tokens_details"), True),
    **dict.fromkeys(("image_data", "video_data", "audio_data"), DATA),
    "stream_options": {}, "custom_labels": {"a": "b"}, "external_trace_header": {"a": "b"},
    "metadata": {"a": "b"}, "container": {"a": "b"}, "client_metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "tools": [{"name": "f"}], "mcp_servers": [{"name": "f"}],
    "images": [DATA], "best_of": 2, "messages": SAID, "text": "b", "prompt": "b", "input": "b",
    "input_ids": [1, 2], "input_embeds": [[0.5]], "items": ["b"], "documents": ["b"],
    "label_token_ids": [2], "tokens": [2], "encoding_format": "base64", "return_documents": False,
    "top_n": 1, "dimensions": 2, "questions": [{**SCORED, "id": "r"}], "token_ids_logprob": [1],
    PARAMS: {"temperature": 1}, "is_cross_encoder_request": False,
}  # fmt: skip
"""A value of each field that is one of its kind; any text will do for others."""

OWN: dict[tuple[str, str], Any] = {
    ("/v1/responses", "text"): {"format": {"type": "text"}},
    ("/v1/responses", "reasoning"): {"effort": "low"},
    ("/v1/responses", "max_output_tokens"): 5,
    ("/v1/responses", "store"): True,
    ("/v1/systemone", "questions"): {"r": {"type": "score"}},
    ("/encode", "input_embeds"): "x",
    ("/classify", "input_embeds"): "x",
}
"""Those that have another value in one API."""

INSTEAD: dict[tuple[str, str], str] = {
    ("/v1/tokenize", "messages"): "prompt",
    ("/tokenize", "messages"): "prompt",
    ("/encode", "input_ids"): "text",
    ("/classify", "input_ids"): "text",
}
"""The members in whose place a field is."""

PROMPTS = {"text", "input_ids", "input_embeds", "prompt", "messages", "input", "items", "documents"}
PROMPTS |= {"questions", "tokens", "state"}
"""What stands for a prompt, so that there is no call for a list with another one."""
