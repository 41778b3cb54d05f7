"""States in 8 bits beside those in 32: near, small, and the same again after they were restored."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from finetooth_fewbits import optimizers as built
from finetooth_hooks import PlanError, RecipeError
from finetooth_kit import entries_of
from finetooth_kit.fake_context import FACTS

SHAPE = (96, 128)


def followed(made, weight, steps):
    for step in steps:
        weight.grad = torch.tensor(np.random.default_rng(step).standard_normal(SHAPE), dtype=torch.float32)
        made.step()


def start():
    return torch.nn.Parameter(torch.tensor(np.random.default_rng(99).standard_normal(SHAPE), dtype=torch.float32))


def adamw(steps, rate, betas, eps):
    p, m, v = start().detach().double().numpy(), 0.0, 0.0
    for t, step in enumerate(steps, start=1):
        g = np.random.default_rng(step).standard_normal(SHAPE)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        p = p - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def lion(steps, rate, betas):
    p, m = start().detach().double().numpy(), 0.0
    for step in steps:
        g = np.random.default_rng(step).standard_normal(SHAPE)
        p = p - rate * np.sign(betas[0] * m + (1 - betas[0]) * g)
        m = betas[1] * m + (1 - betas[1]) * g
    return p


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_a_state_of_8_bits_stays_near_the_papers(kind):
    """Nearer than a tenth of how far weights have moved, on average."""
    weight, steps = start(), range(10)
    if kind == "adamw":
        made = built.build_adamw_8bit(built.AdamW8bitOptions(learning_rate=0.01))
        wanted = adamw(steps, 0.01, (0.9, 0.999), 1e-8)
    else:
        made = built.build_lion_8bit(built.Lion8bitOptions(learning_rate=0.01))
        wanted = lion(steps, 0.01, (0.9, 0.99))
    own = made.create([("proj.weight", weight)])
    followed(own, weight, steps)
    moved = np.abs(wanted - start().detach().numpy()).mean()
    assert np.abs(weight.detach().numpy() - wanted).mean() < 0.1 * moved
    kept = [v for v in own.state[weight].values() if torch.is_tensor(v) and v.numel() == weight.numel()]
    assert {value.dtype for value in kept} == {torch.uint8}


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_restored_state_goes_on_bit_for_bit(offload):
    factory = built.build_adamw_8bit(built.AdamW8bitOptions(weight_decay=0.1, offload=offload))
    weight = start()
    made = factory.create([("proj.weight", weight)])
    followed(made, weight, range(3))
    copied = torch.nn.Parameter(weight.detach().clone())
    other = factory.create([("proj.weight", copied)])
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for own, its in ((made, weight), (other, copied)):
        followed(own, its, range(3, 6))
    assert torch.equal(weight, copied)


def test_state_elsewhere_changes_no_bit():
    weights = []
    for offload in ("none", "cpu", "disk"):
        weight = start()
        made = built.build_adamw_8bit(built.AdamW8bitOptions(offload=offload)).create([("proj.weight", weight)])
        followed(made, weight, range(4))
        weights.append(weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_the_plan_counts_what_is_kept():
    made = built.build_adamw_8bit(built.AdamW8bitOptions())
    h, q, kv = FACTS.hidden_size, FACTS.heads * FACTS.head_dim, FACTS.kv_heads * FACTS.head_dim
    of_layer = [(q, h), (kv, h), (kv, h), (h, q), (FACTS.ffn_size, h), (FACTS.ffn_size, h), (h, FACTS.ffn_size)]
    shapes = of_layer * FACTS.layers + [(FACTS.vocab_size, h)] * (1 if FACTS.tied else 2)
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    own = made.create([(f"layers.{i}.weight", weight) for i, weight in enumerate(weights)])
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    own.step()
    kept = sum(v.nbytes for state in own.state.values() for v in state.values() if torch.is_tensor(v) and v.dim())
    assert made.state_bytes(FACTS) == pytest.approx(kept / sum(w.numel() for w in weights), rel=0.02)


def test_paged_ones_are_for_cuda_alone_and_are_not_kept_elsewhere_twice():
    devices = {entry.name: entry.devices for entry in entries_of("finetooth_fewbits.plugin")}
    paged = {name for name, where in devices.items() if where == {"cuda"}}
    assert paged == {"paged_adamw", "paged_adamw_8bit"}
    with pytest.raises(RecipeError, match=r"optimizer.offload: cpu cannot be: the driver"):
        built.build_paged_adamw(built.AdamW8bitOptions(offload="cpu"))


def test_a_library_that_does_not_load_is_one_line(monkeypatch):
    from bitsandbytes import cextension
    from finetooth_torchshared.build import check_bitsandbytes

    check_bitsandbytes("cuda:0", "optimizer", "adamw")  # what is loaded here
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("not found\nsee"))
    check_bitsandbytes("cpu", "optimizer", "adamw")
    with pytest.raises(PlanError, match=r"this GPU \(not found\) \(install what it lacks, or set optimizer to adamw\)"):
        check_bitsandbytes("cuda:0", "optimizer", "adamw")
