"""A tiny random model of each architecture of the family trains two steps by a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from finetooth_kit.families import SIZES, train_two_steps
from finetooth_kit.templates import template_tokenizer

finetooth = pytest.importorskip("finetooth")

OWN = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 4,
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
    config = transformers.AutoConfig.for_model(kind, **OWN)
    train_two_steps(finetooth.run, tmp_path, config, tokenizer, adapter={"name": "lora", "rank": 2}, max_length=2048)
