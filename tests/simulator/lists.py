"""Routes that generate nothing: each row of a list is answered for itself."""

from __future__ import annotations

import json
import random
from array import array
from base64 import b64encode
from typing import Any

from sglang_cached_addon.simulator.handler import Routes
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json
from sglang_cached_addon.simulator.words import Prompt, token_ids, word
from tests.simulator.checks import missing
from tests.simulator.handler import Handler

SIZE = 8
"""Numbers of a vector, where a call does not say."""


async def tokenize(handler: Handler) -> None:
    if not handler.engine.profile.has_tokenize:
        handler.reply({"detail": "Not Found"}, 404)
        return
    prompt = handler.document().get("prompt")
    if not isinstance(prompt, str | list):
        raise missing("prompt")
    ids: Any = (
        [token_ids(text) for text in prompt] if isinstance(prompt, list) else token_ids(prompt)
    )
    count = [len(each) for each in ids] if isinstance(prompt, list) else len(ids)
    handler.reply({"tokens": ids, "count": count, "max_model_len": CONTEXT_LENGTH})


async def detokenize(handler: Handler) -> None:
    tokens = handler.document()["tokens"]
    if not any(isinstance(each, list) for each in tokens):
        handler.reply({"text": "".join(map(word, tokens))})
        return
    handler.reply({"text": ["".join(map(word, ids)) for ids in tokens]})


def vector(prompt: Prompt, size: int) -> list[float]:
    """Numbers of float32 that are always the same for a text, some of them small."""
    dice = random.Random(f"{prompt}")
    numbers = array("f", (dice.uniform(-1, 1) ** 9 for _ in range(size)))
    return numbers.tolist()


def inputs(given: Any) -> list[Prompt]:
    """The inputs of a call, however it gives them."""
    is_many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    return given if is_many else [given]


def usage(prompts: list[Prompt]) -> Json:
    tokens = sum(len(token_ids(prompt)) for prompt in prompts)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }


async def embeddings(handler: Handler) -> None:
    body = handler.document()
    if not body.get("input"):
        raise missing("input")
    prompts = inputs(body["input"])
    rows = []
    for index, prompt in enumerate(prompts):
        numbers: Any = vector(prompt, body.get("dimensions") or SIZE)
        if body.get("encoding_format") == "base64":
            numbers = b64encode(array("f", numbers)).decode()
        rows.append({"embedding": numbers, "index": index, "object": "embedding"})
    model = handler.engine.profile.model
    rows = handler.engine.twist(rows)
    said = {"data": rows, "model": model, "object": "list", "usage": usage(prompts)}
    handler.reply(json.dumps(said).encode(), kind="application/json")


async def encode(handler: Handler) -> None:
    body = handler.document()
    prompts = inputs(body["text"] if "text" in body else body["input_ids"])
    rids = body.get("rid") or [f"{dice:032x}" for dice in range(len(prompts))]
    found = [
        {
            "embedding": vector(prompt, body.get("dimensions") or SIZE),
            "meta_info": {
                "id": rid,
                "finish_reason": {"type": "length", "length": 0},
                "prompt_tokens": len(token_ids(prompt)),
                "weight_version": handler.engine.loaded.profile.weight_version,
            },
        }
        for prompt, rid in zip(prompts, [rids] if isinstance(rids, str) else rids, strict=True)
    ]
    is_many = prompts is body.get("text") or prompts is body.get("input_ids")
    said = json.dumps(found if is_many else found[0], separators=(",", ":"))
    handler.reply(said.encode(), kind="application/json")


async def classify(handler: Handler) -> None:
    body = handler.document()
    prompts = inputs(body["input"])
    rows = []
    for index, prompt in enumerate(prompts):
        probs = [abs(number) for number in vector(prompt, 2)]
        label = f"LABEL_{probs.index(max(probs))}"
        rows.append({"index": index, "label": label, "probs": probs, "num_classes": 2})
    said = {"id": f"classify-{0:032x}", "object": "list", "created": 1, "model": "m", "data": rows}
    handler.reply({**said, "usage": usage(prompts)})


async def score(handler: Handler) -> None:
    body = handler.document()
    prompts: list[Prompt] = [body["query"] + item for item in inputs(body["items"])]
    rows = [vector(prompt, len(body["label_token_ids"])) for prompt in prompts]
    said = {"scores": rows, "pooled_hidden_states": None, "token_logprobs": None}
    model = body.get("model", "default")
    handler.reply({**said, "model": model, "usage": usage(prompts), "object": "scoring"})


async def rerank(handler: Handler) -> None:
    body = handler.document()
    rows: list[Json] = []
    for index, document in enumerate(body["documents"]):
        shown = {"document": document} if body.get("return_documents", True) else {}
        (number,) = vector(f"{body['query']} {document}", 1)
        rows.append({"score": number, **shown, "index": index, "meta_info": None})
    rows.sort(key=lambda row: float(row["score"]), reverse=True)
    said = json.dumps(rows[: body.get("top_n")], separators=(",", ":"), ensure_ascii=False)
    handler.reply(said.encode(), kind="application/json")


async def decide(handler: Handler) -> None:
    """Each question is put in a prompt of its own, and those of `/v1/systemone` in one."""
    body = handler.document()
    asked = body["questions"]
    names = list(asked) if isinstance(asked, dict) else [question["id"] for question in asked]
    prompts: list[Prompt] = [f"{body.get('input')} {name}" for name in names]
    answers: Json = {}
    for name, prompt in zip(names, prompts, strict=True):
        answers[name] = {"score": vector(prompt, 1)[0]}
        if body.get("return_prompt_token_ids"):
            answers[name] |= {"prompt_token_ids": token_ids(prompt), "label_token_ids": [1]}
    said = {"model": body.get("model", "default"), "answers": answers}
    handler.reply({**said, "usage": usage(prompts)})


ROUTES: Routes = {
    "/v1/classify": (("POST",), classify),
    "/v1/score": (("POST",), score),
    "/v1/rerank": (("POST", "PUT"), rerank),
    **dict.fromkeys(("/v1/decisions", "/v1/systemone"), (("POST",), decide)),
    "/v1/embeddings": (("POST",), embeddings),
    **dict.fromkeys(("/encode", "/classify"), (("POST", "PUT"), encode)),
    **dict.fromkeys(("/tokenize", "/v1/tokenize"), (("POST",), tokenize)),
    **dict.fromkeys(("/detokenize", "/v1/detokenize"), (("POST",), detokenize)),
}
