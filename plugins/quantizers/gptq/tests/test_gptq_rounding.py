"""GPTQ against the paper's own updates in float64, and against rounding to the nearest on what a model reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_gptq.calibration import calibrate
from finetooth_gptq.rounding import grid_of, nearest, rounded
from finetooth_toolbox.torch.grouped_linear import GroupedLinear
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

    found = calibrate(model, "model.layers", ids.tolist(), lambda path, shape: "k_proj" not in path, store)
    assert found == len(seen) == 2 * 6
    assert seen[0][:2] == ("model.layers.0.self_attn.q_proj", (64, 64)) and seen[5][1] == (96, 96)
    assert all(trace > 0 for *_, trace in seen)
    with torch.no_grad():
        off = (model(ids).logits - before).abs().max()
    assert off < 0.02 * before.abs().max()
