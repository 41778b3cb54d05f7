"""Schedule-free optimizers against the paper in float64 NumPy and against its authors' library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_hooks import PlanError, RecipeError
from finetooth_schedulefree import optimizers as built

STEPS, RATE, DECAY, BETA, BETA2, EPS = 9, 0.05, 0.1, 0.85, 0.95, 1e-6
FACTORS = np.minimum(1.0, np.arange(1, STEPS + 1) / 4)
COMMON = {"learning_rate": RATE, "weight_decay": DECAY, "interpolation": BETA}


def start():
    return np.random.default_rng(1).standard_normal((3, 4))


def gradients():
    rng = np.random.default_rng(0)
    return 10.0 ** rng.integers(-2, 2, (STEPS, 1, 1)) * rng.standard_normal((STEPS, 3, 4))


def made(base):
    if base == "adamw":
        return built.build_adamw(built.ScheduleFreeAdamWOptions(**COMMON, beta2=BETA2, eps=EPS))
    return built.build_sgd(built.ScheduleFreeSgdOptions(**COMMON))


def paper(base):
    """(y, x) after all steps: equations 3 to 5 and algorithm 1, with z, x and y kept apart."""
    z = x = y = start()
    v, shares, largest = np.zeros_like(z), 0.0, 0.0
    for t, (g, factor) in enumerate(zip(gradients(), FACTORS, strict=True), start=1):
        rate = RATE * factor
        if base == "adamw":
            v = BETA2 * v + (1 - BETA2) * g**2
            g = g / (np.sqrt(v / (1 - BETA2**t)) + EPS)
        z = z - rate * (g + DECAY * y)
        largest = max(largest, rate)
        shares += largest**2
        c = largest**2 / shares
        x = (1 - c) * x + c * z
        y = (1 - BETA) * z + BETA * x
    return y, x


def trained(optimizer, dtype=torch.float64):
    weight = torch.nn.Parameter(torch.tensor(start(), dtype=dtype))
    own = optimizer.create([("proj.weight", weight)])
    for g, factor in zip(gradients(), FACTORS, strict=True):
        own.param_groups[0]["lr"] = RATE * factor
        weight.grad = torch.tensor(g, dtype=dtype)
        own.step()
    return weight, own


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_it_is_the_papers(base):
    optimizer = made(base)
    weight, own = trained(optimizer)
    y, x = paper(base)
    np.testing.assert_allclose(weight.detach().numpy(), y, rtol=1e-9)
    with optimizer.averaged(own):
        np.testing.assert_allclose(weight.detach().numpy(), x, rtol=1e-9)
    np.testing.assert_allclose(weight.detach().numpy(), y, rtol=1e-9)


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_it_is_its_authors_library(base):
    library = pytest.importorskip("schedulefree")
    weight = torch.nn.Parameter(torch.tensor(start()))
    if base == "adamw":
        theirs = library.AdamWScheduleFree(
            [weight], lr=RATE, betas=(BETA, BETA2), eps=EPS, weight_decay=DECAY, foreach=False
        )
    else:
        theirs = library.SGDScheduleFree([weight], lr=RATE, momentum=BETA, weight_decay=DECAY, foreach=False)
    theirs.train()
    for g, factor in zip(gradients(), FACTORS, strict=True):
        theirs.param_groups[0]["lr"] = RATE * factor
        weight.grad = torch.tensor(g)
        theirs.step()
    optimizer = made(base)
    got, own = trained(optimizer)
    torch.testing.assert_close(got, weight, rtol=1e-10, atol=1e-12)
    theirs.eval()
    with optimizer.averaged(own):
        torch.testing.assert_close(got, weight, rtol=1e-10, atol=1e-12)


def test_what_trains_comes_back_bit_for_bit_from_an_average():
    optimizer = made("adamw")
    weight, own = trained(optimizer, torch.float32)
    before, kept = weight.detach().clone(), {k: v for k, v in own.state[weight].items() if torch.is_tensor(v)}
    states = {name: value.clone() for name, value in kept.items()}
    with pytest.raises(KeyboardInterrupt), optimizer.averaged(own):
        assert not torch.equal(weight, before)
        raise KeyboardInterrupt
    assert torch.equal(weight, before)
    assert all(torch.equal(own.state[weight][name], value) for name, value in states.items())


def test_before_the_first_step_the_average_is_the_weight():
    optimizer = made("sgd")
    weight = torch.nn.Parameter(torch.tensor(start()))
    with optimizer.averaged(optimizer.create([("proj.weight", weight)])):
        np.testing.assert_array_equal(weight.detach().numpy(), start())


def test_rounding_by_chance_is_refused_and_others_average_nothing():
    with pytest.raises(RecipeError, match=r"optimizer.rounding.*averages"):
        built.build_sgd(built.ScheduleFreeSgdOptions(rounding="stochastic"))
    from finetooth_torchshared.optimizers import TorchOptimizer

    plain = TorchOptimizer(options=built.ScheduleFreeSgdOptions(), learning_rate=1.0, make=torch.optim.SGD)
    with pytest.raises(PlanError, match="averages"):
        plain.averaged(None)
