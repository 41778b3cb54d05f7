"""GPTQ against the paper's own updates in float64, and against rounding to the nearest on what a model reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_gptq.calibration import calibrate
from finetooth_gptq.rounding import grid_of, nearest, rounded
from finetooth_torchshared.grouped_linear import GroupedLinear
from torch import nn


def problem(outputs: int, inputs: int, rows: int = 600) -> tuple[Any, Any, Any]:
    """A weight, and rows to calibrate with and to try, whose columns depend on each other."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((inputs // 4, inputs)) * 10.0 ** rng.uniform(-1, 1, inputs)
    both = rng.standard_normal((2, rows, inputs // 4)) @ mixed + 0.3 * rng.standard_normal((2, rows, inputs))
    weight = torch.tensor(rng.standard_normal((outputs, inputs)) / inputs**0.5, dtype=torch.float32)
    return weight, *(torch.tensor(one, dtype=torch.float32) for one in both)


def numbers(stored: Any) -> Any:
    return GroupedLinear(stored).dequantised(torch.float64)


def by_the_paper(weight: Any, hessian: Any, group: int, bits: int, damping: float, ordered: bool) -> Any:
    """Equations 2 and 3: after each column the inverse of what is left is taken anew."""
    grid = grid_of(torch.tensor(weight, dtype=torch.float32), group, bits)
    scales, zeros = (part.double().numpy() for part in grid.spread(weight.shape[1]))
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    left = list(np.argsort(-np.diag(hessian), kind="stable") if ordered else range(len(hessian)))
    w, out = weight.copy(), np.zeros_like(weight)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        i = left[0]
        codes = np.clip(np.round(w[:, i] / scales[:, i] + zeros[:, i]), 0, grid.most)
        out[:, i] = (codes - zeros[:, i]) * scales[:, i]
        w[:, left] -= np.outer((w[:, i] - out[:, i]) / inverse[0, 0], inverse[0])
        left.pop(0)
    return out


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_the_papers(bits: Any, ordered: bool) -> None:
    weight, rows, _ = problem(12, 160)  # more than a block of columns
    hessian = rows.T @ rows
    found = numbers(rounded(weight, hessian, 32, bits, damping=0.01, ordered=ordered)).numpy()
    wanted = by_the_paper(weight.double().numpy(), hessian.double().numpy(), 32, bits, 0.01, ordered)
    assert (np.abs(found - wanted) > 1e-6).mean() < 0.005  # in fp32 a weight between two codes may go either way


@pytest.mark.parametrize("inputs", [128, 100])
def test_a_layer_computes_nearer_to_what_it_did_than_with_nearest_codes(inputs: int) -> None:
    weight, rows, tried = problem(64, inputs)
    exact = tried.double() @ weight.double().T
    errors = {}
    for name, stored in {
        "nearest": nearest(weight, 32, 4),
        "gptq": rounded(weight, rows.T @ rows, 32, 4, damping=0.01, ordered=True),
    }.items():
        errors[name] = float((tried.double() @ numbers(stored).T - exact).norm() / exact.norm())
    assert errors["gptq"] < 0.7 * errors["nearest"]


def test_inputs_that_are_never_read_change_nothing() -> None:
    weight, rows, tried = problem(16, 64)
    rows[:, 5] = tried[:, 5] = 0
    stored = rounded(weight, rows.T @ rows, 32, 4, damping=0.01, ordered=True)
    assert torch.isfinite(numbers(stored)).all()


def never(path: str, weight: Any, hessians: Any) -> nn.Module:
    raise AssertionError(f"{path} is no weight of experts")


def test_experts_are_rounded_by_what_each_reads() -> None:
    """Hessians against rows picked by the router's own choice, in float64; what the layer computes against rounding to
    the nearest."""
    from finetooth_gptq.rounding import joined
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    plain: Any = Qwen3MoeForCausalLM(config).eval()
    for name in ("gate_up_proj", "down_proj"):  # what an expert reads differs in size from place to place
        getattr(plain.model.layers[0].mlp.experts, name).data.mul_(10)
    plain.model.layers[0].post_attention_layernorm.weight.data = 10 ** torch.empty(64).uniform_(-1, 1)
    ids = torch.randint(0, 96, (24, 24))
    read: list[tuple[Any, Any]] = []
    experts = plain.model.layers[0].mlp.experts
    handle = experts.register_forward_pre_hook(lambda module, args: read.append((args[0], args[1])))
    with torch.no_grad():
        before = plain(ids).logits
    handle.remove()
    rows, chosen = read[0][0].reshape(-1, 64), read[0][1].reshape(-1, 2)
    wanted: dict[str, dict[int, Any]] = {"gate_up_proj": {}, "down_proj": {}}
    for expert in range(4):
        own = rows[(chosen == expert).any(1)].double()
        gate, up = (own @ experts.gate_up_proj[expert].double().T).chunk(2, -1)
        inner = nn.functional.silu(gate) * up
        wanted["gate_up_proj"][expert], wanted["down_proj"][expert] = own.T @ own, inner.T @ inner
    off: dict[bool, float] = {}
    for by_hessian in (True, False):
        model: Any = Qwen3MoeForCausalLM(config).eval()
        model.load_state_dict(plain.state_dict())

        def store(path: str, weight: Any, hessians: Any, by_hessian: bool = by_hessian) -> nn.Module:
            name = path.rpartition(".")[2]
            for expert, hessian in hessians.items():
                exact = wanted[name][expert]
                torch.testing.assert_close(hessian.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
            assert len(hessians) == 4
            nothing = torch.zeros(weight.shape[2], weight.shape[2])
            given = [hessians[e] if by_hessian else nothing for e in range(4)]
            parts = [rounded(w, h, 32, 4, damping=0.01, ordered=True) for w, h in zip(weight, given, strict=True)]
            return GroupedLinear(joined(parts))

        found = calibrate(model, "model.layers", ids.tolist(), lambda path, shape: "experts" in path, never, store)
        assert found == 2 and model.config._experts_implementation == plain.config._experts_implementation
        with torch.no_grad():
            off[by_hessian] = float((model(ids).logits - before).norm())
    assert 0 < off[True] < 0.9 * off[False], off


def test_a_model_is_stored_layer_by_layer_over_what_the_stored_ones_give() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 96, (8, 24))
    with torch.no_grad():
        before = model(ids).logits
    seen: list[tuple[str, tuple[int, ...], float]] = []

    def store(path: str, module: nn.Linear, hessian: Any) -> nn.Module:
        seen.append((path, tuple(hessian.shape), float(hessian.trace())))
        return GroupedLinear(rounded(module.weight, hessian, 32, 8, damping=0.01, ordered=True), module.bias)

    found = calibrate(model, "model.layers", ids.tolist(), lambda path, shape: "k_proj" not in path, store, never)
    assert found == len(seen) == 2 * 6
    assert seen[0][:2] == ("model.layers.0.self_attn.q_proj", (64, 64)) and seen[5][1] == (96, 96)
    assert all(trace > 0 for *_, trace in seen)
    with torch.no_grad():
        off = (model(ids).logits - before).abs().max()
    assert off < 0.02 * before.abs().max()
