"""A tiny random model of each architecture of the family trains two steps by a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_hooks.testing.templates import template_tokenizer

finetooth = pytest.importorskip("finetooth")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 280,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 257,
}


@pytest.mark.parametrize(("kind", "source"), [("llama", "chatml"), ("smollm3", "smollm3")])
def test_two_steps(template: Callable[[str], str], tmp_path: Path, kind: str, source: str) -> None:
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = template_tokenizer(template(source), special, eos="<|im_end|>")
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": str(i + 1)}]}
        for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = finetooth.run(
        {
            "model": str(tmp_path / "model"),
            "data": {"train": str(tmp_path / "rows.jsonl")},
            "adapter": {"name": "lora", "rank": 2},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "train": {"batch_size": 2, "precision": "fp32", "max_length": 2048, "max_steps": 2},
            "trackers": ["jsonl"],
            "output": str(tmp_path / "run"),
        }
    )
    assert outcome.status == "done"
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
