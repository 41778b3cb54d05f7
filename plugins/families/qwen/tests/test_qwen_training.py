"""A tiny random model of each architecture of the family trains two steps by a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_kit.families import SIZES, train_two_steps
from finetooth_kit.templates import template_tokenizer

finetooth = pytest.importorskip("finetooth")
safetensors = pytest.importorskip("safetensors.numpy")

OWN = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "vocab_size": 280,
    "max_position_embeddings": 1024,
    "pad_token_id": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FULL = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
KINDS: dict[str, tuple[dict[str, Any], str, bool, str]] = {
    # what else its config needs, its template, whether every layer has full attention, where its feed-forward is
    "qwen2": ({}, "qwen2.5", True, "mlp"),
    "qwen3": ({}, "qwen3", True, "mlp"),
    "qwen3_moe": (EXPERTS, "qwen3", True, ""),
    "qwen3_next": ({**SHARED, **LINEAR}, "qwen3-instruct-2507", False, ""),
    "qwen3_5_text": (LINEAR, "qwen3", False, "mlp"),
    "qwen3_5_moe_text": ({**SHARED, **LINEAR}, "qwen3", False, "mlp.shared_expert"),
    "qwen3_5": ({"text_config": {**OWN, **LINEAR}}, "qwen3", False, "mlp"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps(template: Callable[[str], str], tmp_path: Path, kind: str) -> None:
    own, source, everywhere, feed_forward = KINDS[kind]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = template_tokenizer(template(source), special, eos="<|im_end|>")
    sizes = own if "text_config" in own else {**OWN, **own}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    train_two_steps(finetooth.run, tmp_path, config, tokenizer, adapter={"name": "lora", "rank": 2})
    (file,) = (tmp_path / "run/artifact").glob("*.safetensors")
    names = [name for name in safetensors.load_file(file) if "lora_B" in name]
    found = {name.partition(".layers.")[2].partition(".lora_B")[0] for name in names}
    wanted = {f"{i}.{name}" for i in range(4) for name in FULL if everywhere or i == 3}
    for name in ("gate_proj", "up_proj", "down_proj") if feed_forward else ():
        wanted |= {f"{i}.{feed_forward}.{name}" for i in range(4)}
    assert found == wanted
