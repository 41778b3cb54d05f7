"""Scores of `ft eval` are of the model and the rows: neither how many go through it at once nor their order matters."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ft = Callable[..., tuple[int, str, str]]
QUESTIONS = [" ".join(f"{word}{number}" for word in ("why", "when", "how")[: 1 + number % 3]) for number in range(12)]


@pytest.fixture(scope="module")
def talker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of its own; else a random model says its last token again, whatever is asked."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(file: Path, expected: dict[str, str], order: list[str]) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": expected[asked]}]}
        for asked in order
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def measured(ft: Ft, model: Path, rows: Path, kept: Path, tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluations by name, and every answer with its score by question."""
    asked = json.dumps({"name": "exact_match", "max_tokens": 8})
    code, out, error = ft(
        *("eval", model, "--data", rows, "--evaluator", asked, "--evaluator", "loss", "--suite", "probes"),
        *("--set", f"train.micro_batch_tokens={tokens}", "--set", "train.precision=fp32"),
        *("--set", "data.renderer=chatml", "--answers", kept, "--json"),
    )
    assert code == 0, error
    answers = [json.loads(line) for line in kept.read_text().splitlines()]
    (made,) = json.loads(out).values()
    said = {(one["evaluator"], one["prompt"]): (one["answer"], one["score"]) for one in answers}
    return {one["name"]: one for one in made}, said


@pytest.mark.slow
def test_scores_do_not_change_with_batch_size_and_order(ft: Ft, talker: Path, tmp_path: Path) -> None:
    """Half of the expected answers are what the model says, so that a changed answer changes the score."""
    rows = write_rows(tmp_path / "first.jsonl", dict.fromkeys(QUESTIONS, "x"), QUESTIONS)
    _, said = measured(ft, talker, rows, tmp_path / "first", 4096)
    assert len({text for text, _ in said.values()}) > 12
    right = {asked: said["exact_match", asked][0] if place % 2 else "x" for place, asked in enumerate(QUESTIONS)}
    order = random.Random(3).sample(QUESTIONS, len(QUESTIONS))
    seen = [
        measured(ft, talker, write_rows(tmp_path / f"{name}.jsonl", right, rows_in), tmp_path / name, tokens)
        for name, rows_in, tokens in (("whole", QUESTIONS, 4096), ("one", QUESTIONS, 64), ("mixed", order, 150))
    ]
    (first, answers), *others = seen
    assert first["exact_match"]["metrics"]["exact_match"] == 0.5 and first["exact_match"]["rows"] == 12
    for evaluations, again in others:
        assert again == answers
        assert evaluations["exact_match"]["metrics"] == first["exact_match"]["metrics"]
        assert evaluations["probes"]["metrics"] == first["probes"]["metrics"]
        assert evaluations["loss"]["metrics"] == pytest.approx(first["loss"]["metrics"], rel=1e-6)


def test_what_the_answers_depend_on_is_recorded(ft: Ft, talker: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", dict.fromkeys(QUESTIONS[:2], "x"), QUESTIONS[:2])
    made, _ = measured(ft, talker, rows, tmp_path / "kept", 4096)
    settings = made["exact_match"]["settings"]
    assert settings["template"].endswith("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert settings["template"].startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert settings == {**settings, "stop": ["<|im_end|>", "<|endoftext|>"], "max_tokens": 8, "temperature": 0.0}
    assert made["probes"]["settings"] == {**settings, "max_tokens": 64} and not made["loss"]["settings"]
