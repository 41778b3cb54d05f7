"""One by one: the bits of all at once; rounding by chance is right on average; files have no names."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from finetooth_torchshared.offloaded import in_files, in_host_memory  # noqa: E402
from finetooth_torchshared.one_by_one import OneByOne, corrected, lent, round_by_chance, rounded_by_chance  # noqa: E402


def weights(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in ((5, 7), (7,), (3, 5))]


def follow(optimizer, parameters, steps):
    for step in steps:
        draw = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        parameters[1].grad = None if step % 2 else parameters[1].grad
        optimizer.step()
        assert all(
            (parameter.grad is None) == (parameter is parameters[1] and step % 2 == 1) for parameter in parameters
        )


def made(parameters, around=(), keep=None):
    inner = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], lr=0.01, fused=True)
    return OneByOne(inner, around, keep)


@pytest.mark.parametrize("keep", [None, in_host_memory, "files"])
def test_one_by_one_is_all_at_once_bit_for_bit_and_restores(tmp_path: Path, keep) -> None:
    keep = in_files(tmp_path) if keep == "files" else keep
    plain, other, third = weights(), weights(), weights()
    optimizer = torch.optim.AdamW([{"params": plain[:2]}, {"params": plain[2:], "lr": 0.1}], lr=0.01, fused=True)
    follow(optimizer, plain, range(5))
    around = [] if keep is None else [lent(keep)]
    own = made(other, around, keep)
    follow(own, other, range(3))
    again = made(third, around, keep)
    again.load_state_dict(copy.deepcopy(own.state_dict()))
    for one, its in zip(third, other, strict=True):
        one.data.copy_(its.data)
    follow(own, other, range(3, 5))
    follow(again, third, range(3, 5))
    for a, b, c in zip(plain, other, third, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert list(tmp_path.iterdir()) == [], "files have no names any more"


def test_a_rate_that_is_set_reaches_the_inner_optimizer() -> None:
    parameters = weights()
    own = made(parameters)
    for group in own.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = [parameter.detach().clone() for parameter in parameters]
    follow(own, parameters, range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_chance_rounds_to_a_neighbour_and_is_right_on_average() -> None:
    """20,000 draws for each of 64 numbers: the mean within 5 standard errors; numbers that bf16 has stay."""
    draw = torch.Generator().manual_seed(7)
    numbers = torch.randn(64, generator=draw) * 10.0 ** torch.randint(-6, 6, (64,), generator=draw)
    numbers[:8] = numbers[:8].bfloat16().float()
    count = 20_000
    rounded = torch.empty(count, 64, dtype=torch.bfloat16)
    round_by_chance(numbers.repeat(count, 1), rounded, draw)
    found = rounded.double()
    bits = numbers.view(torch.int32)
    below = (bits & -(1 << 16)).view(torch.float32).double()
    above = ((bits & -(1 << 16)) + (1 << 16)).view(torch.float32).double()
    assert bool(((found == below) | (found == above)).all())
    spread = (above - below).abs()
    part = (numbers.double() - below).abs() / spread
    error = spread * (part * (1 - part) / count).sqrt()
    assert bool(((found.mean(0) - numbers.double()).abs() <= 5 * error).all())
    assert bool((found[:, :8] == numbers[:8].double()).all())


def test_what_is_not_finite_stays_so() -> None:
    numbers = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    rounded = torch.empty(4, dtype=torch.bfloat16)
    round_by_chance(numbers.clone(), rounded, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rounded.float(), numbers, equal_nan=True, rtol=0, atol=0)


def test_chance_keeps_what_nearest_loses_and_follows_its_seed() -> None:
    """1,000 steps of a hundredth of a unit in the last place each: nearest stands still, chance arrives."""

    def walked(dtype, seed=0):
        parameter = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        optimizer = OneByOne(optimizer, [rounded_by_chance(seed)]) if dtype == torch.bfloat16 and seed else optimizer
        for _ in range(1000):
            parameter.grad = torch.full_like(parameter, -(2.0**-7) / 100)
            optimizer.step()
        return parameter.detach().float()

    assert torch.equal(walked(torch.bfloat16), torch.ones(4096))
    arrived = walked(torch.bfloat16, seed=1)
    assert float(arrived.mean()) == pytest.approx(float(walked(torch.float32).mean()), rel=1e-3)
    assert torch.equal(arrived, walked(torch.bfloat16, seed=1))
    assert not torch.equal(arrived, walked(torch.bfloat16, seed=2))


def test_corrections_are_the_papers_to_the_code() -> None:
    """In float64: 127ths of half the distance from a weight to the next one of its exponent."""
    numbers = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(400).sub(200).div(6)
    numbers = torch.cat([numbers, torch.tensor([0.0, 2.0**-133, -(2.0**-140), 1.0, -1.5])])
    parameter = torch.nn.Parameter(torch.zeros(len(numbers), dtype=torch.bfloat16))
    optimizer = OneByOne(torch.optim.SGD([parameter], lr=1.0), [corrected])
    parameter.grad_dtype = torch.float32
    parameter.grad = -numbers
    optimizer.step()
    low = parameter.detach().double()
    assert torch.equal(low, numbers.to(torch.bfloat16).double())
    exponent = torch.floor(torch.log2(low.abs().clamp(min=2.0**-126)))
    share = (numbers.double() - low) / 2.0 ** (exponent - 8)
    assert torch.equal(optimizer.state[parameter]["lost"].double(), (share * 127).round())
    # what the next update starts from is off by half a 127th of that at most
    seen = {}

    class Looking(torch.optim.SGD):
        def step(self, closure=None):
            seen["weight"] = parameter.data.clone()

    looking = OneByOne(Looking([parameter], lr=1.0), [corrected])
    looking.state[parameter]["lost"] = optimizer.state[parameter]["lost"]
    parameter.grad = torch.zeros_like(numbers)
    looking.step()
    assert seen["weight"].dtype == torch.float32
    off = (seen["weight"].double() - numbers.double()).abs()
    assert bool((off <= 2.0 ** (exponent - 8) / 254 + 2.0**-149).all())


def test_corrections_keep_what_nearest_loses() -> None:
    """As by chance, and without chance; and a state that is loaded goes where the first one went."""
    parameter = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = OneByOne(torch.optim.AdamW([parameter], lr=2.0**-7 / 10, weight_decay=0.0), [corrected])
    for step in range(200):
        if step == 100:
            resumed = torch.nn.Parameter(parameter.detach().clone())
            other = OneByOne(torch.optim.AdamW([resumed], lr=2.0**-7 / 10, weight_decay=0.0), [corrected])
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            assert other.state[resumed]["lost"].dtype == torch.int8
            parameter, optimizer = resumed, other
        parameter.grad = -torch.ones_like(parameter)
        optimizer.step()
    assert float(parameter.detach().float().mean()) == pytest.approx(1 + 200 * 2.0**-7 / 10, rel=1e-3)


def test_a_failed_update_leaves_weights_and_gradients_as_they_were() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no memory")

    own = OneByOne(Failing([parameter], lr=1.0), [rounded_by_chance(1)])
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="no memory"):
        own.step()
    assert parameter.dtype == torch.bfloat16 and parameter.grad is not None
