"""Facts against transformers' own models of the same configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from finetooth_falconh1.family import FalconH1
from finetooth_hooks.testing import parametrize_with_checks

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5},
}  # fmt: skip


@parametrize_with_checks("finetooth_falconh1.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})
    models: Any = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = models.from_config(config).eval().float()
    facts = FalconH1().facts(config.to_dict())
    layers = model.get_submodule(facts.layer_path)
    sizes = (facts.layers, facts.hidden_size, facts.vocab_size, facts.heads, facts.kv_heads, facts.ffn_size)
    assert sizes == (len(layers), 32, 97, 4, 2, 48)
    assert (facts.max_positions, facts.block, facts.renderer) == (64, None, "jinja")
    linear = {path: module for path, module in layers.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {path.rpartition(".")[2] for path in linear} == {*facts.linear_targets, *facts.untargeted}
    queries = {m.weight.shape for path, m in linear.items() if path.endswith("q_proj")}
    assert queries == {(facts.heads * facts.head_dim, 32)}
    assert set(facts.attention_targets) <= set(facts.linear_targets)
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    ids = torch.arange(9)[None] + 3
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids)[0]
        logits = model.get_submodule(facts.head.module)(hidden) * facts.head.scale
        torch.testing.assert_close(logits, model(input_ids=ids).logits)
