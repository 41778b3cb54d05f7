"""The optimizers against their papers in float64 NumPy, and against libraries where those do what the papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from finetooth_adaptive import optimizers as built
from finetooth_hooks import RecipeError
from finetooth_kit.fake_context import FACTS

STEPS, RATE, DECAY = 8, 0.03, 0.1
SHAPES = {"layers.0.q_proj.weight": (4, 6), "layers.0.down_proj.weight": (8, 5), "norm.weight": (4,)}
BETAS2, BETAS3, EPS = (0.8, 0.95), (0.8, 0.95, 0.99), 1e-6


def start(place):
    return np.random.default_rng(place).standard_normal(list(SHAPES.values())[place])


def gradients(place, steady=False):
    """Over several orders of magnitude, so that second moments and limits matter; steady ones go one way."""
    shape, rng = list(SHAPES.values())[place], np.random.default_rng(10 + place)
    drawn = rng.standard_normal((STEPS, *shape))
    return 10.0 ** rng.integers(-2, 2, (STEPS, *[1] * len(shape))) * (np.abs(drawn) if steady else drawn)


def parameters():
    return [torch.nn.Parameter(torch.tensor(start(place))) for place in range(len(SHAPES))]


def followed(made, weights, steady=False):
    for step in range(STEPS):
        for place, weight in enumerate(weights):
            weight.grad = torch.tensor(gradients(place, steady)[step])
        made.step()
    return [weight.detach().numpy() for weight in weights]


def trained(optimizer, steady=False):
    weights = parameters()
    made = optimizer.create(list(zip(SHAPES, weights, strict=True)))
    return followed(made, weights, steady), made


def check(optimizer, oracle):
    """`oracle` gives what the learning rate multiplies, or None for no update."""
    got, made = trained(optimizer)
    for place in range(len(SHAPES)):
        p, decay, update = start(place), DECAY if place < 2 else 0.0, oracle()
        for t, g in enumerate(gradients(place), start=1):
            moved = update(p, g, t)
            if moved is not None:
                p = p * (1 - RATE * decay) - RATE * moved
        np.testing.assert_allclose(got[place], p, rtol=1e-8, atol=1e-11)
    return made


def ademamix(alpha, warmup):
    def oracle():
        m1 = m2 = v = 0.0
        b1, b2, b3 = BETAS3

        def update(p, g, t):
            nonlocal m1, m2, v
            a = min(alpha * t / warmup, alpha) if warmup else alpha
            grown = b3
            if warmup:
                part = t / warmup
                l1, l3 = math.log(b1), math.log(b3)
                grown = min(math.exp(l1 * l3 / ((1 - part) * l3 + part * l1)), b3) if part < 1 else b3
            m1, m2 = b1 * m1 + (1 - b1) * g, grown * m2 + (1 - grown) * g
            v = b2 * v + (1 - b2) * g**2
            return (m1 / (1 - b1**t) + a * m2) / (np.sqrt(v / (1 - b2**t)) + EPS)

        return update

    return oracle


@pytest.mark.parametrize("warmup", [0, 5])
def test_ademamix_is_the_papers(warmup):
    options = built.AdEMAMixOptions(
        learning_rate=RATE, weight_decay=DECAY, betas=BETAS3, eps=EPS, alpha=3.0, slow_warmup=warmup
    )
    check(built.build_ademamix(options), ademamix(3.0, warmup))


def test_adopt_is_the_papers():
    def oracle():
        m, v = 0.0, None

        def update(p, g, t):
            nonlocal m, v
            if v is None:
                v = g**2
                return None
            limit = (t - 1) ** 0.25
            m = BETAS2[0] * m + (1 - BETAS2[0]) * np.clip(g / np.maximum(np.sqrt(v), EPS), -limit, limit)
            v = BETAS2[1] * v + (1 - BETAS2[1]) * g**2
            return m

        return update

    options = built.AdoptOptions(learning_rate=RATE, weight_decay=DECAY, betas=BETAS2, eps=EPS)
    check(built.build_adopt(options), oracle)


def test_came_is_the_papers():
    eps1, eps2, clip = 1e-20, 1e-12, 0.7

    def oracle():
        m, sums = 0.0, {}
        b1, b2, b3 = BETAS3

        def root(name, values, beta):
            if values.ndim == 1:
                sums[name] = beta * sums.get(name, 0.0) + (1 - beta) * values
                return np.sqrt(sums[name])
            r, c = sums.get(name, (0.0, 0.0))
            r, c = beta * r + (1 - beta) * values.mean(1), beta * c + (1 - beta) * values.mean(0)
            sums[name] = (r, c)
            return np.sqrt(np.outer(r, c) / r.mean())

        def update(p, g, t):
            nonlocal m
            u = g / root("square", g**2 + eps1, b2)
            u = u / max(1.0, np.sqrt((u**2).mean()) / clip)
            m = b1 * m + (1 - b1) * u
            return m / root("distance", (u - m) ** 2 + eps2, b3) if g.ndim == 2 else m

        return update

    options = built.CameOptions(learning_rate=RATE, weight_decay=DECAY, betas=BETAS3, eps=(eps1, eps2), clip=clip)
    check(built.build_came(options), oracle)


def test_sophia_is_the_papers_with_the_empirical_fisher():
    cut = []

    def oracle():
        m = h = 0.0

        def update(p, g, t):
            nonlocal m, h
            m = BETAS2[0] * m + (1 - BETAS2[0]) * g
            if (t - 1) % 3 == 0:
                h = BETAS2[1] * h + (1 - BETAS2[1]) * 50 * g**2
            ratio = m / np.maximum(0.05 * h, EPS)
            cut.append(np.abs(ratio) > 1)
            return np.clip(ratio, -1, 1)

        return update

    options = built.SophiaOptions(
        learning_rate=RATE, weight_decay=DECAY, betas=BETAS2, gamma=0.05, targets=50, update_every=3, eps=EPS
    )
    check(built.build_sophia(options), oracle)
    share = np.mean(np.concatenate([one.ravel() for one in cut]))
    assert 0.05 < share < 0.95, "the cut must matter, and must not be all"


def prodigy_options():
    return built.ProdigyOptions(
        learning_rate=0.5, weight_decay=DECAY, betas=BETAS2, eps=EPS, first=1e-3, growth=2.0, decay_norms=True
    )


def test_prodigy_is_the_papers():
    got, made = trained(built.build_prodigy(prodigy_options()), steady=True)
    lr, d, r, (b1, b2) = 0.5, 1e-3, 0.0, BETAS2
    p = [start(place) for place in range(3)]
    first, m, v, s = [x.copy() for x in p], [0.0] * 3, [0.0] * 3, [0.0] * 3
    rates = []
    for step in range(STEPS):
        r, length, new = math.sqrt(b2) * r, 0.0, d
        for i in range(3):
            g = gradients(i, steady=True)[step]
            r += lr * d**2 * float((g * (first[i] - p[i])).sum())
            m[i] = b1 * m[i] + (1 - b1) * d * g
            v[i] = b2 * v[i] + (1 - b2) * d**2 * g**2
            s[i] = math.sqrt(b2) * s[i] + lr * d**2 * g
            length += np.abs(s[i]).sum()
            p[i] = p[i] * (1 - lr * d * DECAY) - lr * d * m[i] / (np.sqrt(v[i]) + d * EPS)
        new = max(d, 2.0 * r / length)
        rates.append(new)
        d = new
    for place in range(3):
        np.testing.assert_allclose(got[place], p[place], rtol=1e-9)
    assert rates[-1] > rates[0], "the rate never grew"
    assert all(group["rate"] == pytest.approx(d) for group in made.param_groups)


def test_prodigy_is_the_librarys():
    """pytorch-optimizer's takes the new rate times eps where the paper has the old one; a tiny eps hides that."""
    library = pytest.importorskip("pytorch_optimizer")
    weights = parameters()
    theirs = library.Prodigy(
        weights, lr=0.5, betas=BETAS2, d0=1e-3, d_coef=2.0, weight_decay=DECAY, eps=1e-30, weight_decouple=True
    )
    options = prodigy_options().model_copy(update={"eps": 1e-30})
    got, _ = trained(built.build_prodigy(options), steady=True)
    for mine, their in zip(got, followed(theirs, weights, steady=True), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-6, atol=1e-9)


def test_prodigy_comes_near_the_best_rate_by_itself():
    """A quadratic bowl far away: from a rate of 1e-6 it arrives."""
    weight = torch.nn.Parameter(torch.zeros(6))
    made = built.build_prodigy(built.ProdigyOptions()).create([("w", weight)])
    far = torch.arange(1.0, 7.0)
    for _ in range(400):
        weight.grad = weight.detach() - far
        made.step()
    assert float((weight - far).detach().abs().max()) < 0.5


@pytest.mark.parametrize("kind", ["ademamix", "came"])
def test_it_is_the_librarys(kind):
    library = pytest.importorskip("pytorch_optimizer")
    weights = parameters()
    if kind == "ademamix":
        theirs = library.AdEMAMix(weights, lr=RATE, betas=BETAS3, alpha=3.0, eps=EPS)
        options = built.AdEMAMixOptions(learning_rate=RATE, betas=BETAS3, eps=EPS, alpha=3.0)
        got, _ = trained(built.build_ademamix(options))
    else:
        theirs = library.CAME(weights, lr=RATE, betas=BETAS3, eps1=1e-20, eps2=1e-12)
        options = built.CameOptions(learning_rate=RATE, betas=BETAS3, eps=(1e-20, 1e-12))
        got, _ = trained(built.build_came(options))
    for mine, their in zip(got, followed(theirs, weights), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-6, atol=1e-9)


def test_prodigy_is_refused_one_by_one():
    with pytest.raises(RecipeError, match=r"optimizer.offload.*all gradients together"):
        built.build_prodigy(built.ProdigyOptions(offload="disk"))


def test_the_plan_counts_what_came_keeps():
    made = built.build_came(built.CameOptions())
    h, q, kv = FACTS.hidden_size, FACTS.heads * FACTS.head_dim, FACTS.kv_heads * FACTS.head_dim
    of_layer = [(q, h), (kv, h), (kv, h), (h, q), (FACTS.ffn_size, h), (FACTS.ffn_size, h), (h, FACTS.ffn_size)]
    shapes = of_layer * FACTS.layers + [(FACTS.vocab_size, h)] * (1 if FACTS.tied else 2)
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    own = made.create([(f"layers.{i}.weight", weight) for i, weight in enumerate(weights)])
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    own.step()
    kept = sum(v.numel() * 4 for state in own.state.values() for v in state.values() if torch.is_tensor(v))
    assert made.state_bytes(FACTS) == pytest.approx(kept / sum(w.numel() for w in weights), rel=0.01)
