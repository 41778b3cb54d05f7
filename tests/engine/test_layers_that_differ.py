"""Models whose layers differ: what their families say of each layer, against transformers' models, torch's own counter
and the figures that were published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from finetooth_deepseek.family import DeepSeek
from finetooth_falconh1.family import FalconH1
from finetooth_gemma.family import Gemma
from finetooth_glm.family import GLM
from finetooth_gptoss.family import GPTOSS
from finetooth_granite.family import Granite
from finetooth_hooks.protocols import ModelFacts
from finetooth_kimi.family import Kimi
from finetooth_kit.families import EXPERTS, LATENT, MAMBA, SIZES, tiny_model
from finetooth_lfm2.family import LFM2
from finetooth_mistral.family import Mistral
from finetooth_modelfiles.sizes import shapes
from finetooth_nemotronh.family import NemotronH
from finetooth_qwen.family import Qwen
from finetooth_toolbox.llama_shape import cached_numbers, layer_weights
from finetooth_torch.planning.flops import PLAIN, Computed, Execution, Flops, cost_of, count, planned_cost
from torch.utils.flop_counter import FlopCounterMode

ROWS, WIDTH = 3, 11
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT_MIXTURE = {**LATENT, **EXPERTS, "first_k_dense_replace": 1}
BOTH = {**MAMBA, "hidden_size": 32, "mamba_d_ssm": 64, "head_dim": 8, "mamba_chunk_size": WIDTH}
STATES = {**MAMBA, "mamba_chunk_size": WIDTH}
HYBRID = {**STATES, "hidden_size": 32, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24}
NEMOTRON = {"hidden_size": 32, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2,
    "chunk_size": WIDTH, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 16}  # fmt: skip
MODELS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "experts": (Mistral(), "mixtral", {"num_local_experts": 4}),
    "some dense": (Qwen(), "qwen3_moe", {**MIXTURE, "mlp_only_layers": [1], "head_dim": 8}),
    "experts and windows": (GPTOSS(), "gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
    "windows": (Gemma(), "gemma2", {"head_dim": 8, "sliding_window": 4}),
    "latent attention": (DeepSeek(), "deepseek_v3", LATENT_MIXTURE),
    "queries as they are": (DeepSeek(), "deepseek_v2", {**LATENT_MIXTURE, "q_lora_rank": None}),
    "Kimi": (Kimi(), "deepseek_v3", LATENT_MIXTURE),
    "latent, listed": (GLM(), "glm4_moe_lite", {**LATENT_MIXTURE, "mlp_layer_types": ["dense", "sparse"]}),
    "shared experts": (GLM(), "glm4_moe", {**EXPERTS, "first_k_dense_replace": 1, "head_dim": 8}),
    "Mamba or attention": (Granite(), "granitemoehybrid", {**HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Mamba, dense": (Granite(), "granitemoehybrid", {**HYBRID, "num_local_experts": 0}),
    "Mamba with attention": (FalconH1(), "falcon_h1", BOTH),
    "Mamba, attention": (NemotronH(), "nemotron_h", {**NEMOTRON, "layers_block_type": ["mamba", "attention"]}),
    "blocks of one kind": (NemotronH(), "nemotron_h", {**NEMOTRON, "layers_block_type": ["moe", "mlp"]}),
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
    """What torch counts, forward and backward apart, without convolutions."""
    tokens = torch.randint(2, 50, (ROWS, WIDTH))
    model.train()
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, use_cache=False).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Flops(*(
        sum(flops for operation, flops in mode.get_flop_counts()["Global"].items() if "conv" not in str(operation))
        for mode in (forward, backward)
    ))  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_flops_are_what_torch_counts(case: str) -> None:
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


V3 = {"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "vocab_size": 129280,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
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
    # arXiv:2412.19437, section 4.2; arXiv:2507.20534, table 2; arXiv:2508.06471, table 1
    "DeepSeek-V3": (DeepSeek(), V3, 671e9, 37e9),
    "Kimi K2": (Kimi(), {**V3, "vocab_size": 163840, "num_attention_heads": 64, "num_key_value_heads": 64,
        "n_routed_experts": 384, "first_k_dense_replace": 1}, 1.04e12, 32.6e9),
    "GLM-4.5": (GLM(), {"model_type": "glm4_moe", "hidden_size": 5120, "num_hidden_layers": 92, "head_dim": 128,
        "num_attention_heads": 96, "num_key_value_heads": 8, "intermediate_size": 12288, "vocab_size": 151552,
        "n_routed_experts": 160, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "n_shared_experts": 1,
        "first_k_dense_replace": 3}, 355e9, 32e9),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_total_and_active_weights_are_those_published(model: str) -> None:
    """gpt-oss counts its unembedding as active and its embedding not, GLM-4.5 neither; the others count both."""
    family, config, total, active = PUBLISHED[model]
    facts = family.facts(config)
    ends = facts.vocab_size * facts.hidden_size
    assert layer_weights(facts) + 2 * ends == pytest.approx(total, rel=0.02)
    if active is None:
        return
    layers = planned_cost(facts).layers
    computed = sum(linear.inputs * linear.outputs for layer in layers for linear in layer.linears)
    counted_ends = {"gpt-oss-20b": 1, "GLM-4.5": 0}.get(model, 2)
    assert computed + ends * counted_ends == pytest.approx(active, rel=0.02)


def test_adapters_and_caches_count_only_layers_that_attend() -> None:
    facts = Qwen().facts(PUBLISHED["Qwen3-Next-80B-A3B"][1])
    known = shapes(facts)
    queries = [path for path in known if path.endswith("q_proj")]
    assert len(queries) == 12 and known[queries[0]] == (2048, 2 * 16 * 256)
    assert cached_numbers(facts) == 12 * 2 * 2 * 256
    assert {layer.state for layer in facts.per_layer} == {0, 32 * 128 * 128}
