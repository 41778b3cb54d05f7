"""Rows that sequences share, in models that hand a state on (linear attention, state spaces, short convolutions).

Losses, gradients and scores are those of rows alone, with checkpointing too; and the functions by which the state
begins anew equal transformers' own on each sequence alone."""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum
from finetooth_hooks.protocols import Head
from finetooth_kit.builders import build
from finetooth_torch.layout import state_reset
from finetooth_torch.layout.state_reset import Segments, replace_scans, states_reset
from finetooth_torch.planning.row_sharing import scanned

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
CARRY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("qwen", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}),
    "qwen3_5_text": ("qwen", LINEAR),
    "qwen3_5_moe_text": ("qwen", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}),
    "granitemoehybrid": ("granite", {**MAMBA, **LOCAL, "layer_types": ["mamba", "attention"]}),
    "nemotron_h": ("nemotronh", {
        "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8,
        "n_groups": 2, "chunk_size": 8,
    }),
    "falcon_h1": ("falconh1", {**MAMBA, "mamba_d_ssm": 48}),
    "lfm2": ("lfm2", CONVOLUTION),
    "lfm2_moe": ("lfm2", {**EXPERTS, **CONVOLUTION, "num_dense_layers": 1}),
    "jamba": ("", {
        **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
    }),
    "kimi_linear": ("", {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6,
        "first_k_dense_replace": 2, "num_key_value_heads": 4, "linear_attn_config": {
            "num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4, "kda_layers": [1], "full_attn_layers": [2],
        },
    }),
}  # fmt: skip
"""The family of each type, empty where none describes its layers, and what its config says."""
LENGTHS = (3, 70, 9, 140, 1, 33, 200, 5)
"""Shorter and longer than a chunk, in three groups."""


def engine_of(kit: SimpleNamespace, kind: str, *, packing: bool, **more: Any) -> Any:
    from transformers import CONFIG_MAPPING

    family, changes = CARRY[kind]
    config = CONFIG_MAPPING[kind](**{**SIZES, **changes})
    facts: dict[str, Any] = {"block": None, "head": Head(), "tied": False}
    if family:
        entry = next(iter(import_module(f"finetooth_{family}.plugin").ft_families()))
        of = build(entry, {}, None)
        facts["per_layer"] = of.facts(config.to_dict()).per_layer
    options = {"packing": packing, "decoder": "transformers"}
    return kit.engine(
        config=config, adapter=kit.adapter(full=True), facts=facts, options=options, precision="fp32",
        micro_batch_tokens=512, **more,
    )  # fmt: skip


def rows() -> list[Datum]:
    drawn = np.random.default_rng(1)
    return [Datum.from_tokens(drawn.integers(2, 61, n + 1).tolist(), id=f"row {i}") for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("kit", ["transformers"], indirect=True)
@pytest.mark.parametrize("kind", CARRY)
def test_shared_rows_are_rows_alone(kit: SimpleNamespace, kind: str) -> None:
    made = {}
    for packing, checkpointing in ((False, False), (True, False), (True, True)):
        engine = engine_of(kit, kind, packing=packing, gradient_checkpointing=checkpointing)
        result = engine.forward_backward(rows(), kit.nll)
        made[packing, checkpointing] = result, kit.gradients(engine), engine.logprobs(rows())
    apart, gradients, scores = made.pop((False, False))
    for packed, ours, found in made.values():
        assert packed.padded < apart.padded
        assert packed.loss == pytest.approx(apart.loss, rel=1e-5)
        assert kit.relative(ours, gradients) < 1e-5
        for mine, theirs in zip(found, scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h", "jamba", "kimi_linear"])
def test_a_scan_is_the_functions_own_on_each_sequence(kind: str) -> None:
    """In float64 as far as the function keeps it; a row of the input that is one segment too."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZES, **CARRY[kind][1]}))
    replace_scans(model.base_model)
    module = sys.modules[type(model).__module__]
    lengths, generator = ((3, 70, 27), (100,)), torch.Generator().manual_seed(0)
    segments = Segments(lengths, torch.device("cpu"))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mixed, weight = drawn(2, 6, 100), drawn(6, 4)
    convolve = module.causal_conv1d_fn
    with states_reset(segments):
        ours = convolve(mixed, weight, None, activation="silu", cu_seqlens=None)
    assert convolve.__wrapped__ is not convolve
    for row, parts in enumerate(lengths):
        expected = [convolve(part[None], weight, None, activation="silu")[0] for part in mixed[row].split(parts, -1)]
        torch.testing.assert_close(ours[row], torch.cat(expected, -1), atol=1e-6, rtol=1e-5)

    along = (drawn(2, 100, 2, 8), drawn(2, 100, 2, 8), drawn(2, 100, 2, 8), -drawn(2, 100, 2).abs())
    axis = 1
    if kind == "jamba":
        axis, decay = 2, -torch.ones(6, 8) / 10

        def scan(*given: torch.Tensor) -> torch.Tensor:
            h, dt, b, c, gate = given
            found: torch.Tensor = module.mamba_selective_scan(h, dt, decay, b, c, D=torch.ones(6), z=gate)
            return found

        inputs = (drawn(2, 6, 100), drawn(2, 6, 100).abs() / 10, drawn(2, 8, 100), drawn(2, 8, 100), drawn(2, 6, 100))
    elif kind == "kimi_linear":
        query, key, value, _ = along

        def scan(*given: torch.Tensor) -> torch.Tensor:
            q, k, v, g, beta = given
            found: torch.Tensor = module.chunk_kimi_delta_attention(q, k, v, g=g, beta=beta)[0]
            return found

        inputs = (query, key / 8, value, -drawn(2, 100, 2, 8).abs() / 10, drawn(2, 100, 2).sigmoid())
    elif kind == "qwen3_next":
        query, key, value, decay = along

        def scan(*given: torch.Tensor) -> torch.Tensor:
            q, k, v, g, beta = given
            found: torch.Tensor = module.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta)[0]
            return found

        inputs = (query, key / 8, value, decay, drawn(2, 100, 2).sigmoid())
    else:
        decay = -torch.ones(2)

        def scan(*given: torch.Tensor) -> torch.Tensor:
            h, dt, b, c = given
            found: torch.Tensor = module.mamba2_chunk_scan(h, dt, decay, b, c, chunk_size=8, D=torch.ones(2))
            return found

        inputs = (along[0], along[3].abs(), along[1], along[2])
        with states_reset(segments):
            assert module.mamba2_split_conv1d_scan_combined(drawn(2, 100, 6)) is None
    with states_reset(segments):
        ours = scan(*inputs)
    for row, parts in enumerate(lengths):
        split = zip(*(value[row].split(parts, axis - 1) for value in inputs), strict=True)
        expected = [scan(*(part[None] for part in segment))[0] for segment in split]
        torch.testing.assert_close(ours[row], torch.cat(expected, axis - 1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scan(*inputs)[0], ours[0], atol=1e-3)  # a state that is handed on


def test_sequences_of_like_lengths_are_scanned_together() -> None:
    """Each position once, and never more than what the plan says."""
    groups, back = Segments(((3, 70, 27), (100,)), torch.device("cpu")).places
    assert [tuple(group.shape) for group in groups] == [(2, 27), (2, 100)]
    read = torch.cat([group.flatten() for group in groups])
    assert read[back].tolist() == list(range(200))
    assert scanned([1, 64, 65, 128, 1000]).tolist() == [64, 64, 128, 128, 1024]
    assert set(state_reset.SCANS) == {
        "causal_conv1d_fn", "torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention", "mamba2_chunk_scan",
        "mamba_selective_scan",
    }  # fmt: skip
