"""Models whose layers differ: what their families say of each layer, against transformers' models, torch's own counter
and the figures that were published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from finetooth_gemma.family import Gemma
from finetooth_gptoss.family import GPTOSS
from finetooth_hooks.protocols import ModelFacts
from finetooth_kit.families import SIZES, tiny_model
from finetooth_lfm2.family import LFM2
from finetooth_mistral.family import Mistral
from finetooth_modelfiles.sizes import shapes
from finetooth_qwen.family import Qwen
from finetooth_toolbox.llama_shape import cached_numbers, layer_weights
from finetooth_torch.planning.flops import PLAIN, Computed, Execution, Flops, cost_of, count, planned_cost
from torch.utils.flop_counter import FlopCounterMode

ROWS, WIDTH = 3, 11
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "experts": (Mistral(), "mixtral", {"num_local_experts": 4}),
    "some dense": (Qwen(), "qwen3_moe", {**MIXTURE, "mlp_only_layers": [1], "head_dim": 8}),
    "experts and windows": (GPTOSS(), "gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
    "windows": (Gemma(), "gemma2", {"head_dim": 8, "sliding_window": 4}),
    "convolutions": (LFM2(), "lfm2", {"layer_types": ["conv", "full_attention"]}),
}


def built(case: str, layers: int = 2) -> tuple[Any, ModelFacts]:
    family, kind, own = MODELS[case]
    config = transformers.AutoConfig.for_model(
        kind,
        **{**SIZES, "num_hidden_layers": layers, **own},
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return tiny_model(config), family.facts(config.to_dict())


def counted(model: Any) -> Flops:
    """What torch counts, forward and backward apart."""
    tokens = torch.randint(2, 50, (ROWS, WIDTH))
    model.train()
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, use_cache=False).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Flops(forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize("case", MODELS)
def test_flops_are_what_torch_counts(case: str) -> None:
    """But for what is not counted, convolutions above all."""
    model, facts = built(case)
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    cost, truth = cost_of(model, facts), counted(model)
    found = count(cost, batch, PLAIN)
    assert found.forward == pytest.approx(truth.forward, rel=0.01)
    assert found.backward == pytest.approx(truth.backward, rel=0.03)
    assert count(planned_cost(facts, full=True), batch, PLAIN) == found


def test_windows_skip_what_they_do_not_see() -> None:
    _, facts = built("windows")
    batch, skips = [Computed((WIDTH, 3), head_rows=0)], Execution(rescores=False)
    seen = [sum(min(i + 1, window) for n in (WIDTH, 3) for i in range(n)) for window in (4, WIDTH)]
    found = count(planned_cost(facts, full=True), batch, skips).forward
    without = count(planned_cost(facts, full=True), [Computed((1,) * (WIDTH + 3), head_rows=0)], skips).forward
    attention = 4 * facts.heads * facts.head_dim * (sum(seen) - 2 * (WIDTH + 3))
    assert found - without == attention


PUBLISHED = {
    # arXiv:2401.04088, section 2; Qwen3 technical report, arXiv:2505.09388, table 2; gpt-oss model card, table 1
    "Mixtral 8x7B": (Mistral(), {"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        "num_local_experts": 8, "num_experts_per_tok": 2}, 46.7e9, 12.9e9),
    "Qwen3-30B-A3B": (Qwen(), {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        30.5e9, 3.3e9),
    "gpt-oss-20b": (GPTOSS(), {"model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880,
        "vocab_size": 201088, "num_local_experts": 32, "num_experts_per_tok": 4}, 20.9e9, 3.6e9),
    "Qwen3-Next-80B-A3B": (Qwen(), {"model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 5120,
        "vocab_size": 151936, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512}, 80e9, None),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_total_and_active_weights_are_those_published(model: str) -> None:
    """gpt-oss counts its unembedding as active and its embedding not; the others count both."""
    family, config, total, active = PUBLISHED[model]
    facts = family.facts(config)
    ends = facts.vocab_size * facts.hidden_size
    assert layer_weights(facts) + 2 * ends == pytest.approx(total, rel=0.02)
    if active is None:
        return
    layers = planned_cost(facts).layers
    computed = sum(linear.inputs * linear.outputs for layer in layers for linear in layer.linears)
    assert computed + ends * (1 if "gpt" in model else 2) == pytest.approx(active, rel=0.02)


def test_adapters_and_caches_count_only_layers_that_attend() -> None:
    facts = Qwen().facts(PUBLISHED["Qwen3-Next-80B-A3B"][1])
    known = shapes(facts)
    queries = [path for path in known if path.endswith("q_proj")]
    assert len(queries) == 12 and known[queries[0]] == (2048, 2 * 16 * 256)
    assert cached_numbers(facts) == 12 * 2 * 2 * 256
    assert {layer.state for layer in facts.per_layer} == {0, 32 * 128 * 128}
