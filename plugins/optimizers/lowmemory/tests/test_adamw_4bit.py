"""AdamW with moments in 4 bits against the paper in float64 NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from finetooth_kit.fake_context import FACTS
from finetooth_lowmemory import optimizers as built

SHAPE = (96, 128)


def followed(made, weight, steps):
    for step in steps:
        weight.grad = torch.tensor(np.random.default_rng(step).standard_normal(SHAPE), dtype=torch.float32)
        made.step()


def start():
    return torch.nn.Parameter(torch.tensor(np.random.default_rng(99).standard_normal(SHAPE), dtype=torch.float32))


def nearest(x, levels, block):
    """In float64: each number as the nearest level times the largest size in its block of `block` numbers."""
    flat = np.pad(x.ravel(), (0, -x.size % block)).reshape(-1, block)
    scale = np.abs(flat).max(1, keepdims=True)
    found = levels[np.abs((flat / np.where(scale > 0, scale, 1))[..., None] - levels).argmin(-1)] * scale
    return found.ravel()[: x.size].reshape(x.shape)


def adamw_4bit(steps, rate, betas, eps, decay):
    """Algorithm 1 of the paper; levels as in its figure 2 and appendix."""
    parts = [-0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055]
    signed, even = np.array([*parts, 0.0, *[-x for x in parts[::-1]], 1.0]), np.arange(1, 17) / 16
    p, m, v = start().detach().double().numpy(), 0.0, 0.0
    for t, step in enumerate(steps, start=1):
        g = np.random.default_rng(step).standard_normal(SHAPE)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        p = p * (1 - rate * decay)
        p = p - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        m, v = nearest(m, signed, 128), nearest(v, even, 128)
    return p


def test_adamw_4bit_is_the_papers():
    """But for numbers so near the middle of two levels that fp32 rounds them to the other one."""
    weight, steps = start(), range(5)
    options = built.AdamW4bitOptions(learning_rate=0.01, weight_decay=0.1)
    own = built.build_adamw_4bit(options).create([("proj.weight", weight)])
    followed(own, weight, steps)
    off = np.abs(weight.detach().numpy() - adamw_4bit(steps, 0.01, (0.9, 0.999), 1e-8, 0.1))
    assert (off > 1e-5).mean() < 1e-3
    kept = own.state[weight]
    assert kept["mean"].dtype == kept["square"].dtype == torch.uint8
    assert kept["mean"].nbytes == weight.numel() // 2


def test_small_tensors_keep_their_moments_whole():
    weight = torch.nn.Parameter(torch.ones(4095))
    own = built.build_adamw_4bit(built.AdamW4bitOptions()).create([("proj.weight", weight)])
    weight.grad = torch.randn_like(weight)
    own.step()
    plain = torch.nn.Parameter(torch.ones(4095))
    adam = torch.optim.AdamW([plain], lr=2e-4, weight_decay=0.0, fused=False, foreach=False)
    plain.grad = weight.grad
    adam.step()
    assert torch.allclose(weight, plain, atol=1e-9, rtol=1e-7) and own.state[weight]["mean"].dtype == torch.float32


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_state_of_4_bits_goes_on_bit_for_bit(offload):
    factory = built.build_adamw_4bit(built.AdamW4bitOptions(weight_decay=0.1, offload=offload))
    weight = start()
    made = factory.create([("proj.weight", weight)])
    followed(made, weight, range(3))
    copied = torch.nn.Parameter(weight.detach().clone())
    other = factory.create([("proj.weight", copied)])
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for own, its in ((made, weight), (other, copied)):
        followed(own, its, range(3, 6))
    assert torch.equal(weight, copied)


def test_the_plan_counts_what_is_kept():
    made = built.build_adamw_4bit(built.AdamW4bitOptions())
    h, q, kv = FACTS.hidden_size, FACTS.heads * FACTS.head_dim, FACTS.kv_heads * FACTS.head_dim
    of_layer = [(q, h), (kv, h), (kv, h), (h, q), (FACTS.ffn_size, h), (FACTS.ffn_size, h), (h, FACTS.ffn_size)]
    shapes = of_layer * FACTS.layers + [(FACTS.vocab_size, h)] * (1 if FACTS.tied else 2)
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    own = made.create([(f"layers.{i}.weight", weight) for i, weight in enumerate(weights)])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    own.step()
    kept = sum(v.nbytes for state in own.state.values() for v in state.values() if torch.is_tensor(v))
    assert made.state_bytes(FACTS) == pytest.approx(kept / sum(w.numel() for w in weights))
    assert own.state[weights[-1]]["mean"].dtype == torch.uint8
