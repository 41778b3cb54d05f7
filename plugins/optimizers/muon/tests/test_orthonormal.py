"""Muon and Dion against their papers in float64 NumPy, and the parameters they leave to AdamW."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from finetooth_kit.fake_context import FACTS
from finetooth_muon import optimizers as built
from torch.utils._python_dispatch import TorchDispatchMode

STEPS, RATE, DECAY = 5, 0.03, 0.1


def start(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def gradients(shape, seed):
    return np.random.default_rng(seed).standard_normal((STEPS, *shape))


def train(optimizer, shapes):
    """Float64 weights after STEPS updates by name, the optimizer, and the singular values of the last step along each
    matrix."""
    weights = {n: torch.nn.Parameter(torch.tensor(start(s, i))) for i, (n, s) in enumerate(shapes.items())}
    made = optimizer.create(list(weights.items()))
    before = {}
    for step in range(STEPS):
        before = {name: weight.detach().numpy().copy() for name, weight in weights.items()}
        for i, (name, shape) in enumerate(shapes.items()):
            weights[name].grad = torch.tensor(gradients(shape, 10 + i)[step])
        made.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}, made, before


def adamw(p, grads, betas, eps, decay):
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        p = p * (1 - RATE * decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - RATE * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


SHAPES = {
    "layers.0.up.weight": (6, 4),
    "layers.0.down.weight": (3, 8),
    "layers.0.norm.weight": (4,),
    "embed_tokens.weight": (9, 4),
    "lm_head.weight": (9, 4),
}


@pytest.mark.parametrize("kind", ["muon", "dion"])
def test_what_is_no_matrix_inside_a_layer_trains_with_adamw(kind):
    if kind == "muon":
        optimizer = built.build_muon(built.MuonOptions(learning_rate=RATE, weight_decay=DECAY), None)
    else:
        optimizer = built.build_dion(built.DionOptions(learning_rate=RATE, weight_decay=DECAY), None)
    got, _, _ = train(optimizer, SHAPES)
    for i, (name, shape) in enumerate(SHAPES.items()):
        if i >= 2:
            wanted = adamw(start(shape, i), gradients(shape, 10 + i), (0.9, 0.95), 1e-8, DECAY if i > 2 else 0.0)
            np.testing.assert_allclose(got[name], wanted, rtol=1e-9)


def made(kind):
    return getattr(built, f"build_{kind}")(getattr(built, f"{kind.title()}Options")(learning_rate=RATE), None)


class Passes(TorchDispatchMode):
    """How many weights each fused update has."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._fused_adamw_:
            self.weights.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["muon", "dion"])
def test_the_others_are_updated_in_one_pass_where_the_device_has_a_kernel(kind):
    """In float64 as by one tensor after the other, whatever the layout of a gradient, which a fused kernel ignores."""
    optimizer = made(kind)
    weights = {name: torch.nn.Parameter(torch.tensor(start(shape, 3))) for name, shape in SHAPES.items()}
    alone = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in list(weights.items())[2:]}
    reference = torch.optim.AdamW(alone.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    chained, passes = optimizer.create(list(weights.items())), Passes()
    for step in range(STEPS):
        for i, (name, shape) in enumerate(SHAPES.items()):
            gradient = torch.tensor(gradients(shape, i)[step])
            weights[name].grad = gradient.T.contiguous().T if gradient.ndim == 2 else gradient
            if name in alone:
                alone[name].grad = gradient.clone()
        with passes:
            chained.step()
        reference.step()
    assert passes.weights == [2, 1] * STEPS  # those that decay, and those that do not
    for name, weight in alone.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-12, atol=0)
    for device, how in (("cpu", "fused"), ("meta", "foreach")):
        elsewhere = optimizer.create([("norm.weight", torch.nn.Parameter(torch.ones(4, device=device)))])
        assert elsewhere.param_groups[0][how] is True


@pytest.mark.parametrize("kind", ["muon", "dion"])
@pytest.mark.parametrize("by_tensor", [False, True])
def test_what_is_resumed_has_the_same_bits(kind, by_tensor):
    """Also where the state was saved when these were updated one after the other."""

    def trained(weights, optimizer, steps):
        for step in steps:
            for i, (name, shape) in enumerate(SHAPES.items()):
                weights[name].grad = torch.tensor(gradients(shape, i)[step], dtype=torch.float32)
            optimizer.step()

    def fresh():
        weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
        return weights, made(kind).create(list(weights.items()))

    straight, first = fresh()
    trained(straight, first, range(3))
    saved = deepcopy(first.state_dict())  # which shares its tensors
    for group in saved["param_groups"] if by_tensor else ():
        group.update({"fused": None, "foreach": False} if "fused" in group else {})
    resumed, second = fresh()
    for name, weight in resumed.items():
        weight.data.copy_(straight[name].data)
    second.load_state_dict(saved)
    trained(straight, first, range(3, STEPS))
    trained(resumed, second, range(3, STEPS))
    for name, weight in resumed.items():
        if by_tensor:
            torch.testing.assert_close(weight, straight[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(weight, straight[name]), name


@pytest.mark.parametrize("kind", ["muon", "dion"])
def test_groups_that_an_adapter_divides_have_their_rates_also_when_restored(kind):
    """LoRA+ puts others in their place (`split_by_rate` of the engine): those with a rate of 0 rest."""
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    optimizer = made(kind).create(list(weights.items()))
    optimizer.param_groups[:] = [
        {**group, "params": [weight], "lr": RATE * (weight is weights["layers.0.up.weight"])}
        for group in optimizer.param_groups for weight in group["params"]
    ]  # fmt: skip
    for moved in (1, 2):
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step()
        assert {n for n, weight in weights.items() if not weight.equal(before[n])} == {"layers.0.up.weight"}, moved
        optimizer.load_state_dict(optimizer.state_dict())


def newton_schulz(g, rounds=5):
    """Jordan et al. (2024), in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / np.linalg.norm(x)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize(("scale", "factor"), [
    ("adamw", lambda m, n: 0.2 * np.sqrt(max(m, n))), ("spectral", lambda m, n: np.sqrt(max(1, m / n))),
])  # fmt: skip
def test_muon_is_the_papers(scale, factor):
    """torch iterates in bfloat16, whose rounding is what is left."""
    optimizer = built.build_muon(built.MuonOptions(learning_rate=RATE, weight_decay=DECAY, scale=scale), None)
    got, _, _ = train(optimizer, SHAPES)
    for i, name in enumerate(list(SHAPES)[:2]):
        shape = SHAPES[name]
        p, m = start(shape, i), np.zeros(shape)
        for g in gradients(shape, 10 + i):
            m = 0.95 * m + 0.05 * g
            p = p * (1 - RATE * DECAY) - RATE * factor(*shape) * newton_schulz(0.95 * m + 0.05 * g)
        np.testing.assert_allclose(got[name], p, atol=0.03 * STEPS * RATE * factor(*shape))


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_dion_is_the_papers(ratio):
    options = built.DionOptions(learning_rate=RATE, weight_decay=DECAY, rank_ratio=ratio, momentum=0.8)
    optimizer = built.build_dion(options, None)
    got, _, _ = train(optimizer, SHAPES)
    for i, name in enumerate(list(SHAPES)[:2]):
        m, n = shape = SHAPES[name]
        rank = round(ratio * min(shape))
        drawn = torch.randn(n, rank, generator=torch.Generator().manual_seed(i + 1), dtype=torch.float64).numpy()
        v = drawn / np.linalg.norm(drawn, axis=0)
        p, momentum = start(shape, i), np.zeros(shape)
        for g in gradients(shape, 10 + i):
            b = momentum + g
            u, _ = np.linalg.qr(b @ v)
            r = b.T @ u
            momentum = b - (1 - 0.8) * u @ r.T
            v = r / np.linalg.norm(r, axis=0)
            p = p * (1 - RATE * DECAY) - RATE * np.sqrt(m / n) * u @ v.T
        np.testing.assert_allclose(got[name], p, rtol=1e-8, atol=1e-10)


def test_a_dion_step_of_full_rank_moves_every_direction():
    """With all directions kept, u v^T comes near an orthonormal matrix: no singular value is small."""
    optimizer = built.build_dion(built.DionOptions(learning_rate=RATE, rank_ratio=1.0), None)
    got, _, before = train(optimizer, SHAPES)
    moved = (before["layers.0.up.weight"] - got["layers.0.up.weight"]) / (RATE * np.sqrt(6 / 4))
    assert np.linalg.svd(moved, compute_uv=False).min() > 0.2


def test_the_plan_counts_what_is_kept():
    """By the sizes of the kit's model: one number for a weight of a matrix, two for the rest."""
    one, _ = built.weights(FACTS)
    inside = (
        FACTS.layers
        * FACTS.hidden_size
        * (2 * FACTS.heads * FACTS.head_dim + 2 * FACTS.kv_heads * FACTS.head_dim + 3 * FACTS.ffn_size)
    )
    assert one == inside
    other = FACTS.vocab_size * FACTS.hidden_size * (1 if FACTS.tied else 2)
    wanted = (4 * inside + 8 * other) / (inside + other)
    assert built.build_muon(built.MuonOptions(), None).state_bytes(FACTS) == pytest.approx(wanted)
    assert wanted < built.build_dion(built.DionOptions(), None).state_bytes(FACTS) < 8
