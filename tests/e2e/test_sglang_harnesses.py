"""Programs that draw samples as equal calls work unchanged in a run, but for their base URL.

The first run has as many distinct samples as without the proxy, and a second one has the same ones
for nothing. Against the simulator, or with SGLANG_URL against a real server; a harness that is not
on the PATH is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.conftest import Proxy
from tests.e2e.test_sglang import prompt
from tests.tables import each

Draw = Callable[[str, str, Path], list[str]]
"""Draws samples from a base URL about a subject, in a folder: what was generated, in its order."""

LENGTH, TEMPERATURE = 24, 0.9


def model(url: str) -> str:
    found: str = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    return found


def execute(program: str, *words: str, folder: Path, **env: str) -> None:
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **env}
    done = subprocess.run(
        [found, *words], cwd=folder, env=env, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def lm_eval(url: str, subject: str, folder: Path) -> list[str]:
    """Three prompts, each with `repeats: 4`."""
    task = {
        "task": "draws",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "prompts.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "x",
        "repeats": 4,
        "generation_kwargs": {
            "do_sample": True, "temperature": TEMPERATURE, "max_gen_toks": LENGTH, "until": [],
        },
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": 4}]}],
        "metric_list": [{"metric": "bypass"}],
    }  # fmt: skip
    lines = [json.dumps({"text": f"{subject} {k}"}) for k in range(3)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "draws.yaml").write_text(json.dumps(task))
    told = f"model={model(url)},base_url={url}/v1/completions,tokenizer_backend=None"
    execute(
        "lm_eval", "run", "--model", "local-completions", "--model_args",
        f"{told},tokenized_requests=False,num_concurrent=1", "--batch_size", "1", "--tasks",
        "draws", "--include_path", ".", "--output_path", "out", "--log_samples", folder=folder,
    )  # fmt: skip
    (log,) = (folder / "out").rglob("samples_draws_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return [text for sample in samples for texts in sample["resps"] for text in texts]


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.solver import generate

@task
def draws():
    config = GenerateConfig(temperature={temperature}, max_tokens={length})
    samples = [Sample(input=f"{subject} {{k}}") for k in range(3)]
    return Task(dataset=samples, solver=generate(), config=config)
"""


def inspect(url: str, subject: str, folder: Path) -> list[str]:
    """Three prompts in three epochs, many at the same time."""
    source = TASK.format(temperature=TEMPERATURE, length=LENGTH, subject=subject)
    (folder / "draws.py").write_text(source)
    execute(
        "inspect", "eval", "draws.py", "--model", f"openai-api/local/{model(url)}", "--epochs", "3",
        "--log-format", "json", "--log-dir", "out", "--display", "none", folder=folder,
        LOCAL_BASE_URL=f"{url}/v1", LOCAL_API_KEY="-",
    )  # fmt: skip
    (log,) = (folder / "out").glob("*.json")
    return sorted(s["output"]["completion"] for s in json.loads(log.read_text())["samples"])


def openai_loop(url: str, subject: str, folder: Path) -> list[str]:
    """One call after the other."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
    name = model(url)
    found = []
    for _ in range(8):
        answer = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": subject}],
            temperature=TEMPERATURE,
            max_tokens=LENGTH,
        )
        found.append(answer.choices[0].message.content or "")
    return found


def rollout(url: str, subject: str, folder: Path) -> list[str]:
    """A group of eight, as trainers post it: at the same time, token by token."""
    body = {
        "input_ids": [65 + ord(character) % 26 for character in subject],
        "sampling_params": {"temperature": TEMPERATURE, "max_new_tokens": LENGTH},
        "return_logprob": True,
    }

    def post(_: int) -> Any:
        answer = requests.post(f"{url}/generate", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    for answer in answers:
        meta = answer["meta_info"]
        assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]
    assert len({answer["meta_info"]["id"] for answer in answers}) == 8
    return sorted(answer["text"] for answer in answers)


@pytest.mark.one_way
@each(("draw", "count"), [(lm_eval, 12), (inspect, 9), (openai_loop, 8), (rollout, 8)])
def test_runs(draw: Draw, count: int, front: Proxy, upstream_url: str, tmp_path: Path) -> None:
    """In a run each call has a sample of its own, as without the proxy; another run has the same
    ones, and nothing is generated for it."""
    subject, name = prompt(), f"{draw.__name__}-{os.getpid()}"
    found = []
    for url in (upstream_url, f"{front.url}/run/{name}-a", f"{front.url}/run/{name}-b"):
        folder = tmp_path / name / str(len(found))
        folder.mkdir(parents=True)
        before = front.stats()["samples_from_upstream"]
        texts = draw(url, subject, folder)
        assert len(texts) == count
        found.append((texts, len(set(texts)), front.stats()["samples_from_upstream"] - before))
    (_, distinct, _), (first, size, _), (second, _, generated) = found
    assert size == distinct == count
    assert second == first
    assert generated == 0
