"""The estimates of two published models, against what their layers hold: transformers' own code, with experts in
groups, over tensors that have shapes and no numbers, and figures of their publishers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_gemma.family import Gemma
from finetooth_kernels import grouped
from finetooth_qwen.family import Qwen
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torch.planning.layer_memory import HeldByAttention
from finetooth_torch.planning.memory import DEVICE_OVERHEAD, estimate
from finetooth_torchshared.grouped_experts import compute_in_groups

sys.path.insert(0, str(Path(__file__).parent))
from test_torch_device_memory import GIB, RANK, TOKENS, WIDTH, Live, asked, model_of, run, shapes_only

GEMMA = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256_000,
    "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151_936,
    "tie_word_embeddings": False, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "experts_implementation": "grouped_mm",
}  # fmt: skip
PARAMETERS = {"gemma2": 9_241_705_984, "qwen3_moe": 30_532_122_624}
"""As their publishers state them."""
ATTENTION = {"gemma2": "eager", "qwen3_moe": "sdpa"}
"""What a GPU without further packages computes it with."""


def traced(config: dict[str, Any], *, full: bool) -> int:
    """Most bytes at once of a forward and backward pass, weights and weights' gradients aside. Layers are alike, so
    those of two models with few layers say what all take."""
    peaks = []
    for layers in (2, 4):
        with shapes_only():
            model = model_of(config, layers, full=full, attention=ATTENTION[config["model_type"]])
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            compute_in_groups(model)
            with Live() as live:
                out = run(model)
                kept = live.now
                out.sum().backward()
        peaks.append((kept, live.most))
    (kept, _), (more, most) = peaks
    return most + (config["num_hidden_layers"] - 4) * (more - kept) // 2


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are multiplied at once."""
    monkeypatch.setattr(grouped, "_takes", lambda *tensors: True)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize(("config", "family"), [(GEMMA, Gemma()), (QWEN, Qwen())], ids=["Gemma-2-9B", "Qwen3-30B-A3B"])
def test_the_estimate_is_within_a_tenth_of_the_trace(config: dict[str, Any], family: Any, full: bool) -> None:
    kind, size = config["model_type"], PARAMETERS[config["model_type"]]
    layers = ["sliding_attention", "full_attention"] * 21 if kind == "gemma2" else None
    facts = family.facts({**config, **({"layer_types": layers} if layers else {})})
    # rank times the inputs and outputs of each linear module
    heads = config["num_attention_heads"] * config["head_dim"]
    groups = config["num_key_value_heads"] * config["head_dim"]
    hidden, ffn = config["hidden_size"], config["intermediate_size"] if kind == "gemma2" else 0
    of_layer = 2 * (hidden + heads) + 2 * (hidden + groups) + (3 * (hidden + ffn) if ffn else 0)
    trained = size if full else RANK * config["num_hidden_layers"] * of_layer
    assert RANK * sum(map(sum, layer_matrices(facts))) == RANK * config["num_hidden_layers"] * of_layer
    request = asked(full=full, longest=WIDTH, batch=TOKENS // WIDTH, memory=1000)
    model = replace(request.base.model, parameters=size, model_type=kind, config=config)
    request = replace(
        request,
        base=replace(request.base, facts=facts, model=model),
        trains=replace(request.trains, parameters=trained),
        data=replace(request.data, lengths=(WIDTH,), mean_length=float(WIDTH)),
    )
    held = HeldByAttention(masked=True, fused=kind != "gemma2")
    planned = estimate(request, "bf16", TOKENS, checkpointing=False, stream=False, attention=held)
    # bf16 weights, and of what trains fp32 masters, gradients and two moments; the logits of all tokens in fp32, whose
    # gradient takes their place; of whole models the head's gradient in bf16 and fp32
    weights = 2 * size + (0 if full else 2 * trained) + 16 * trained + 6 * full * config["vocab_size"] * hidden
    logits = 4 * TOKENS * config["vocab_size"]
    passing = traced(config, full=full)
    taken = weights + logits + passing + DEVICE_OVERHEAD
    print(f"\n{taken / GIB:.2f} GiB, planned {planned.total / GIB:.2f}")
    assert planned.total == pytest.approx(taken, rel=0.1)
    if not full:  # otherwise a layer's gradients are in the trace
        assert planned.parts["activations"] == pytest.approx(passing, rel=0.1)
