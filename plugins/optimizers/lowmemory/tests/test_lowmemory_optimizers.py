"""The optimizers against their papers in float64 NumPy, and what they keep against what the plan counts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetooth_kit.fake_context import FACTS
from finetooth_lowmemory import apollo
from finetooth_lowmemory import optimizers as built

STEPS, RATE, DECAY, BETAS, EPS = 7, 0.03, 0.1, (0.8, 0.95), 1e-6
SHAPES = {
    "layers.0.self_attn.q_proj.weight": (4, 6),
    "layers.0.mlp.down_proj.weight": (8, 5),
    "layers.0.norm.weight": (4,),
    "embed_tokens.weight": (9, 4),
}
COMMON = {"learning_rate": RATE, "weight_decay": DECAY, "betas": BETAS, "eps": EPS}
HEAD = SimpleNamespace(facts=SimpleNamespace(head_dim=2))


def start(place):
    return np.random.default_rng(place).standard_normal(list(SHAPES.values())[place])


def gradients(place):
    """Over several orders of magnitude, so that the second moments and limits matter."""
    shape, rng = list(SHAPES.values())[place], np.random.default_rng(10 + place)
    return 10.0 ** rng.integers(-2, 2, (STEPS, *[1] * len(shape))) * rng.standard_normal((STEPS, *shape))


def trained(optimizer):
    weights = [torch.nn.Parameter(torch.tensor(start(place))) for place in range(len(SHAPES))]
    made = optimizer.create(list(zip(SHAPES, weights, strict=True)))
    for step in range(STEPS):
        for place, weight in enumerate(weights):
            weight.grad = torch.tensor(gradients(place)[step])
        made.step()
    return [weight.detach().numpy() for weight in weights], made


class Adam:
    """Adam's direction, of gradients of any shape."""

    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, g):
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g**2
        return (self.m / (1 - BETAS[0] ** self.t)) / (np.sqrt(self.v / (1 - BETAS[1] ** self.t)) + EPS)


def followed(place, update, decayed=DECAY):
    """Weights whose every step is RATE times `update` of a gradient and its number."""
    p = start(place)
    for number, g in enumerate(gradients(place)):
        p = p * (1 - RATE * decayed) - RATE * update(g, number)
    return p


def check_the_rest(got):
    """Norm and embedding: plain Adam."""
    for place, decayed in ((2, 0.0), (3, DECAY)):
        adam = Adam()
        np.testing.assert_allclose(got[place], followed(place, lambda g, _, a=adam: a(g), decayed), rtol=1e-9)


def test_galore_is_the_papers():
    options = built.GaloreOptions(**COMMON, rank=2, update_every=3, scale=0.5)
    got, made = trained(built.build_galore(options))
    check_the_rest(got)

    def updates():
        adam, subspace = Adam(), np.zeros(0)

        def update(g, number):
            nonlocal subspace
            wide = g if g.shape[0] <= g.shape[1] else g.T
            if number % 3 == 0:
                u = np.linalg.svd(wide, full_matrices=False)[0][:, :2]
                subspace = u * np.sign(u[np.abs(u).argmax(0), [0, 1]])
            moved = 0.5 * subspace @ adam(subspace.T @ wide)
            return moved if wide is g else moved.T

        return update

    for place in (0, 1):
        np.testing.assert_allclose(got[place], followed(place, updates()), rtol=1e-8, atol=1e-10)
    kept = [value for value in made.state[made.param_groups[0]["params"][0]].values() if torch.is_tensor(value)]
    assert sum(value.numel() for value in kept) == 2 * (4 + 2 * 6)


@pytest.mark.parametrize("mini", [False, True])
def test_apollo_is_the_papers(mini):
    if mini:
        made = built.build_apollo_mini(built.ApolloMiniOptions(**COMMON, update_every=3, scale=2.0, seed=5))
    else:
        made = built.build_apollo(built.ApolloOptions(**COMMON, rank=2, update_every=3, scale=2.0, seed=5))
    got, _ = trained(made)
    check_the_rest(got)
    rank, limited = 1 if mini else 2, []

    def updates(place):
        adam, longest = Adam(), None

        def update(g, number):
            nonlocal longest
            wide = g if g.shape[0] <= g.shape[1] else g.T
            # parameters are counted by groups, whole ones after projected ones
            drawn = apollo.projection(rank, wide.shape[0], (5, place + 1, number // 3)).double().numpy()
            low = drawn @ wide
            n = adam(low)
            s = (
                np.linalg.norm(n) / np.linalg.norm(low)
                if mini
                else np.linalg.norm(n, axis=0) / np.linalg.norm(low, axis=0)
            )
            u = 2.0 * wide * s
            if longest is not None and np.linalg.norm(u) > 1.01 * longest:
                u = u / np.linalg.norm(u) * 1.01 * longest
                limited.append(number)
            longest = np.linalg.norm(u)
            return u if wide is g else u.T

        return update

    for place in (0, 1):
        np.testing.assert_allclose(got[place], followed(place, updates(place)), rtol=1e-6, atol=1e-9)
    assert limited, "the limit on growth never mattered"


def test_apollo_mini_scales_by_the_root_of_128():
    """The authors' code takes the root of its `scale` of 128. In the first step Adam's direction of one row is its
    signs, whose length is the root of their number."""
    weight = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    weight.grad = torch.tensor(np.random.default_rng(0).normal(size=(4, 6)))
    built.build_apollo_mini(built.ApolloMiniOptions(learning_rate=1.0)).create([("layers.0.w", weight)]).step()
    low = np.concatenate(
        [apollo.projection(1, 4, (0, place, 0)).double().numpy() @ weight.grad.numpy() for place in (0, 1)]
    )
    wanted = np.sqrt(128) * np.sqrt(6) * np.linalg.norm(weight.grad) / np.linalg.norm(low, axis=1)
    assert np.isclose(wanted, np.linalg.norm(weight.detach()), rtol=1e-4).any()


def test_a_random_projection_keeps_lengths_on_average():
    rows = torch.stack([apollo.projection(8, 32, (0, 1, round_)) for round_ in range(200)])
    assert rows.square().sum(1).mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(rows[3], apollo.projection(8, 32, (0, 1, 3)))
    assert not torch.equal(rows[3], apollo.projection(8, 32, (0, 2, 3)))


def test_adam_mini_is_the_papers():
    got, made = trained(built.build_adam_mini(built.AdamMiniOptions(**COMMON), HEAD))
    blocks = [2, 8, 1, 9]  # heads of two rows; rows; one vector; rows

    def updates(place):
        m = v = 0.0

        def update(g, number):
            nonlocal m, v
            t = number + 1
            m = BETAS[0] * m + (1 - BETAS[0]) * g
            v = BETAS[1] * v + (1 - BETAS[1]) * (g.reshape(blocks[place], -1) ** 2).mean(1)
            root = np.sqrt(v / (1 - BETAS[1] ** t)) + EPS
            rows = np.repeat(root, g.shape[0] // blocks[place]).reshape(-1, *[1] * (g.ndim - 1))
            return m / (1 - BETAS[0] ** t) / rows

        return update

    for place in range(len(SHAPES)):
        wanted = followed(place, updates(place), 0.0 if place == 2 else DECAY)
        np.testing.assert_allclose(got[place], wanted, rtol=1e-9)
    assert {len(state["squares"]) for state in made.state.values()} == set(blocks)


@pytest.mark.parametrize(
    "optimizer",
    [
        built.build_galore(built.GaloreOptions(rank=3)),
        built.build_apollo(built.ApolloOptions(rank=3)),
        built.build_apollo_mini(built.ApolloMiniOptions()),
        built.build_adam_mini(built.AdamMiniOptions(), HEAD),
    ],
)
def test_the_plan_counts_what_is_kept(optimizer):
    """All matrices of the kit's model, trained for a step."""
    q, kv, h = FACTS.heads * FACTS.head_dim, FACTS.kv_heads * FACTS.head_dim, FACTS.hidden_size
    of_layer = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
    of_layer |= {"gate_proj": (FACTS.ffn_size, h), "up_proj": (FACTS.ffn_size, h), "down_proj": (h, FACTS.ffn_size)}
    shapes = {f"layers.{i}.{name}.weight": shape for i in range(FACTS.layers) for name, shape in of_layer.items()}
    shapes |= {"embed_tokens.weight": (FACTS.vocab_size, h)}
    shapes |= {} if FACTS.tied else {"lm_head.weight": (FACTS.vocab_size, h)}
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    made = optimizer.create(list(weights.items()))
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    made.step()
    kept = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    kept_bytes = sum(value.numel() * value.element_size() for value in kept if value.dim())
    total = sum(weight.numel() for weight in weights.values())
    assert optimizer.state_bytes(FACTS) == pytest.approx(kept_bytes / total, rel=0.01)


def test_galore_8bit_is_galore_with_moments_rounded_to_8_bits():
    """Three updates of a matrix in float64, the moments rounded between them as the paper's section 5 has it."""
    from finetooth_torchshared.few_bit_states import dynamic_levels

    rank, shape, rng = 64, (96, 128), np.random.default_rng(5)
    options = built.Galore8bitOptions(**COMMON, rank=rank, update_every=2, scale=0.5)
    begun = rng.standard_normal(shape)
    weight = torch.nn.Parameter(torch.tensor(begun, dtype=torch.float32))
    made = built.build_galore_8bit(options).create([("layers.0.mlp.down_proj.weight", weight)])

    def rounded(x, signed):
        levels, flat = dynamic_levels(8, signed=signed).double().numpy(), x.reshape(-1, 256)
        scale = np.abs(flat).max(1, keepdims=True)
        return (levels[np.abs((flat / scale)[..., None] - levels).argmin(-1)] * scale).reshape(x.shape)

    p, m, v = begun, 0.0, 0.0
    for t in range(1, 4):
        g = rng.standard_normal(shape)
        weight.grad = torch.tensor(g, dtype=torch.float32)
        made.step()
        if t % 2:
            subspace = np.linalg.svd(g)[0][:, :rank]
            subspace = subspace * np.sign(subspace[np.abs(subspace).argmax(0), range(rank)])
        r = subspace.T @ g
        m, v = BETAS[0] * m + (1 - BETAS[0]) * r, BETAS[1] * v + (1 - BETAS[1]) * r**2
        direction = m / (1 - BETAS[0] ** t) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
        p = p * (1 - RATE * DECAY) - RATE * 0.5 * subspace @ direction
        m, v = rounded(m, True), rounded(v, False)
    off = np.abs(weight.detach().numpy() - p)
    assert np.median(off) < 2e-6 and np.quantile(off, 0.99) < 1e-4  # the rest: numbers between two levels
    assert made.state[weight]["mean"].dtype == torch.uint8


def test_galore_8bit_goes_on_bit_for_bit_and_is_counted():
    import copy

    factory = built.build_galore_8bit(built.Galore8bitOptions(rank=64, update_every=3))
    weights = [torch.nn.Parameter(torch.ones(96, 128))]
    made = factory.create([("layers.0.mlp.down_proj.weight", weights[0])])

    def step(optimizer, weight, number):
        weight.grad = torch.randn(96, 128, generator=torch.Generator().manual_seed(number))
        optimizer.step()

    for number in range(4):
        step(made, weights[0], number)
    weights.append(torch.nn.Parameter(weights[0].detach().clone()))
    other = factory.create([("layers.0.mlp.down_proj.weight", weights[1])])
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for number in range(4, 8):
        step(made, weights[0], number)
        step(other, weights[1], number)
    assert torch.equal(*weights)
    kept = sum(value.nbytes for value in made.state[weights[0]].values() if torch.is_tensor(value))
    assert kept == 4 * 64 * 96 + 2 * (64 * 128 + 4 * 64 * 128 / 256)
    smaller = factory.state_bytes(FACTS) / built.build_galore(built.GaloreOptions(rank=64)).state_bytes(FACTS)
    assert smaller < 0.6
