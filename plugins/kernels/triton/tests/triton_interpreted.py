"""Values and gradients of the head's Triton kernels under Triton's interpreter, against the float64 reference.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from finetooth_kernels.references import linear_logprob as linear_logprob_reference
from finetooth_triton import gpu, layers, wide_linear
from finetooth_triton import launch as launching
from finetooth_triton import linear_logprob as heads
from finetooth_triton import logits as dispatch
from finetooth_triton import logits as rows
from finetooth_triton.linear_logprob import linear_logprob_triton
from finetooth_triton.operations import WideLinear, entropy_from_logits, logits_statistics, selective_log_softmax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""One unit in the last place: the interpreter cuts off where devices round to nearest."""
Problem = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def many_small_tiles() -> Iterator[None]:
    """Tiles so small that small problems have several in every direction; products of half precision by our kernel."""
    patch = pytest.MonkeyPatch()
    patch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(16, 16, 16, 4, 2, group=2))
    for module in (launching, rows):
        patch.setattr(module, "ROW_COLUMNS", 16)
    patch.setattr(heads, "_LEAST_COLUMNS", 16)
    for module in (heads, wide_linear):
        patch.setattr(module, "multiplies_into_float32", lambda device, dtype: False)
    patch.setattr(dispatch, "has_kernels", lambda device, dtype: dtype != torch.float64)
    yield
    patch.undo()


def make(seed: int, n: int, d: int, v: int, k: int | None, dtype: torch.dtype, *, bias: bool, mask: bool,
         **head: Any) -> Problem:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if k is None else (n, k)
    return {
        "hidden_nd": torch.randn((n, d), generator=generator).to(dtype),
        "weight_vd": torch.randn((v, d), generator=generator).div_(math.sqrt(d)).to(dtype),
        "targets": torch.randint(0, v, shape, generator=generator),
        "mask": torch.rand(n, generator=generator) < 0.6 if mask else None,
        "bias_v": torch.randn(v, generator=generator).to(dtype) if bias else None,
        **head,
    }


def solve(
    function: Any, problem: Problem, *, train_head: bool, entropy: bool, **options: Any
) -> dict[str, torch.Tensor]:
    """Results, and gradients for incoming ones that are drawn once per problem."""
    leaves = {"hidden": problem["hidden_nd"].clone().requires_grad_()}
    if train_head:
        leaves["weight"] = problem["weight_vd"].clone().requires_grad_()
        if problem["bias_v"] is not None:
            leaves["bias"] = problem["bias_v"].clone().requires_grad_()
    inputs = {
        **problem,
        "hidden_nd": leaves["hidden"],
        "weight_vd": leaves.get("weight", problem["weight_vd"]),
        "bias_v": leaves.get("bias", problem["bias_v"]),
    }
    out = function(**inputs, entropy=entropy, top1=True, **options)
    generator = torch.Generator().manual_seed(7)
    objective = (out.logprobs * torch.randn(out.logprobs.shape, generator=generator)).sum()
    results = {"logprobs": out.logprobs.detach(), "top1": out.top1}
    assert (out.entropy is None) == (not entropy)
    if out.entropy is not None:
        objective = objective + (out.entropy * torch.randn(out.entropy.shape, generator=generator)).sum()
        results["entropy"] = out.entropy.detach()
    gradients = torch.autograd.grad(objective, list(leaves.values()))
    return {**results, **{f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}}


def assert_equal(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype: torch.dtype, slack: float
) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == expected[name].dtype and value.shape == expected[name].shape, name
        if name == "top1":
            continue  # rounding decides near-ties; the tests of top-1 have none
        error = (value.double() - expected[name].double()).norm() / expected[name].double().norm().clamp_min(1.0)
        assert error <= slack * ROUNDING[dtype], f"{name}: relative error {error:.2e}"


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**20),
    n=st.sampled_from([0, 1, 5, 16, 37]),
    d=st.sampled_from([1, 7, 16, 33]),
    v=st.sampled_from([1, 2, 16, 47, 71]),
    k=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    mask=st.booleans(),
    entropy=st.booleans(),
    train_head=st.booleans(),
    chunk_bytes=st.sampled_from([40, 600, 5000, 10**6]),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    temperature=st.sampled_from([1.0, 0.7, 2.5]),
)
def test_values_and_gradients_equal_the_reference(
    seed: int, n: int, d: int, v: int, k: int | None, dtype: torch.dtype, bias: bool, mask: bool, entropy: bool,
    train_head: bool, chunk_bytes: int, **head: Any,
) -> None:  # fmt: skip
    problem = make(seed, n, d, v, k, dtype, bias=bias, mask=mask, **head)
    options = {"train_head": train_head, "entropy": entropy, "chunk_bytes": chunk_bytes}
    got = solve(linear_logprob_triton, problem, **options)
    slack = 20.0 if dtype == torch.float32 else 4.0  # in half precision, gradients of logits are rounded
    assert_equal(got, solve(linear_logprob_reference, problem, **options), dtype, slack)


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("k", [None, 2])
def test_logits_are_not_rounded(train_head: bool, k: int | None) -> None:
    problem = make(3, 20, 24, 50, k, torch.bfloat16, bias=True, mask=True, softcap=5.0)
    options = {"train_head": train_head, "entropy": True}
    got, expected = (solve(f, problem, **options) for f in (linear_logprob_triton, linear_logprob_reference))
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bias", [False, True])
def test_training_scoring_and_sampling_say_the_same_bit_for_bit(dtype: torch.dtype, bias: bool) -> None:
    """For states and a head as they come, whose sums are exact in no precision."""
    problem = make(9, 20, 24, 50, None, dtype, bias=bias, mask=False)
    hidden, weight, targets = (problem[name] for name in ("hidden_nd", "weight_vd", "targets"))
    with torch.no_grad():
        scored = linear_logprob_triton(**problem).logprobs
        both = linear_logprob_triton(**{**problem, "targets": targets.unsqueeze(1).expand(-1, 2)}).logprobs
        packed = WideLinear.pack(weight, problem["bias_v"])
        assert packed is not None
        sampled = logits_statistics(packed(hidden, dtype=torch.float32), targets).logprobs
    ways = {"several targets": both[:, 1], "sampling": sampled}
    for trains_head in (False, True):
        for entropy in (False, True):
            leaves = {"hidden_nd": hidden.clone().requires_grad_()}
            if trains_head:
                leaves["weight_vd"] = weight.clone().requires_grad_()
            out = linear_logprob_triton(**{**problem, **leaves}, entropy=entropy)
            ways[f"training, {trains_head=}, {entropy=}"] = out.logprobs.detach()
    assert [name for name, found in ways.items() if not torch.equal(found, scored)] == []


def test_tiny_incoming_gradients_survive_half_precision() -> None:
    """A loss averaged over many tokens, times p, is less than float16 can hold; what it adds up to is not."""
    vocabulary, unit = 600, 2.0**-16
    assert unit / vocabulary < torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps / 2
    hidden = torch.zeros(3, 8, dtype=torch.float16, requires_grad=True)
    weight = (0.5 + torch.rand((vocabulary, 8), generator=torch.Generator().manual_seed(0))).half().requires_grad_()
    targets = torch.tensor([0, 300, 599])
    (linear_logprob_triton(hidden, weight, targets).logprobs.sum() * unit).backward()
    expected = unit * (weight[targets].double() - weight.double().mean(0))
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), expected.detach(), rtol=0.0, atol=2.0**-23)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("train_head", [False, True])
def test_top1_is_the_first_largest_logit(train_head: bool, k: int | None) -> None:
    weight = torch.zeros(71, 4)
    weight[[5, 40, 70], torch.tensor([0, 1, 2])] = 2.0
    weight[[4, 20, 50], 3] = 2.0  # a tie between tiles and between parts of the vocabulary
    hidden = torch.eye(4)[[2, 0, 1, 3, 0]].requires_grad_()
    targets = torch.zeros(5 if k is None else (5, k), dtype=torch.int64)
    out = linear_logprob_triton(
        hidden, weight.requires_grad_(train_head), targets, mask=torch.tensor([1, 1, 1, 1, 0]).bool(), top1=True
    )
    assert out.top1 is not None and out.top1.tolist() == [70, 5, 40, 4, -1] and out.entropy is None


@pytest.mark.parametrize("train_head", [False, True])
def test_huge_logits_stay_finite(train_head: bool) -> None:
    problem = make(1, 20, 4, 50, None, torch.float32, bias=False, mask=False)
    problem["hidden_nd"] *= 1e4
    got = solve(linear_logprob_triton, problem, train_head=train_head, entropy=True)
    assert all(torch.isfinite(value).all() for value in got.values())
    assert (got["entropy"] >= 0).all() and (got["logprobs"] <= 0).all()
    # One rounding of a logit of 1e4 is 1e-3.
    assert_equal(got, solve(linear_logprob_reference, problem, train_head=train_head, entropy=True), torch.float32, 2e4)


@pytest.mark.parametrize("train_head", [False, True])
def test_a_whole_tile_may_be_switched_off(train_head: bool) -> None:
    problem = make(2, 9, 5, 60, None, torch.float32, bias=True, mask=False)
    problem["bias_v"][:33] = -math.inf
    problem["targets"] = 33 + problem["targets"] % 27
    without = {**problem, "weight_vd": problem["weight_vd"][33:], "bias_v": problem["bias_v"][33:],
               "targets": problem["targets"] - 33}  # fmt: skip
    options = {"train_head": train_head, "entropy": True}
    got, expected = (
        solve(linear_logprob_triton, problem, **options),
        solve(linear_logprob_reference, without, **options),
    )
    for name in ("d weight", "d bias"):
        if train_head:
            assert not got[name][:33].any()
            got[name] = got[name][33:]
    assert (got["top1"] == expected["top1"] + 33).all()
    assert_equal(got, expected, torch.float32, 20.0)


@pytest.mark.parametrize("train_head", [False, True])
def test_masked_rows_may_hold_anything(train_head: bool) -> None:
    problem = make(4, 6, 5, 20, None, torch.float32, bias=False, mask=False)
    problem["mask"] = torch.tensor([True, False, True, True, False, True])
    problem["hidden_nd"][1], problem["targets"][4] = torch.nan, -100
    got = solve(linear_logprob_triton, problem, train_head=train_head, entropy=True)
    assert not got["logprobs"][[1, 4]].any() and not got["d hidden"][[1, 4]].any() and not got["entropy"][1]
    assert all(torch.isfinite(value).all() for value in got.values())


@pytest.mark.parametrize("train_head", [False, True])
def test_inputs_may_have_any_strides_and_stay_untouched(train_head: bool) -> None:
    problem = make(5, 12, 18, 40, 2, torch.float32, bias=True, mask=False)
    strided = {
        **problem,
        "hidden_nd": problem["hidden_nd"].t().contiguous().t(),
        "weight_vd": problem["weight_vd"].repeat_interleave(2, 1)[:, ::2],
        "bias_v": problem["bias_v"].repeat_interleave(3)[::3],
        "targets": problem["targets"].t().contiguous().t(),
    }
    before = {name: value.clone() for name, value in strided.items() if isinstance(value, torch.Tensor)}
    got = solve(lambda **kw: linear_logprob_triton(**kw), strided, train_head=False, entropy=True)
    inputs = {name: value.requires_grad_(train_head) for name, value in strided.items() if name == "weight_vd"}
    out = linear_logprob_triton(**{**strided, **inputs}, chunk_bytes=900)  # type: ignore[arg-type]
    expected = solve(linear_logprob_triton, problem, train_head=False, entropy=True)
    assert_equal(got, expected, torch.float32, 8.0)
    torch.testing.assert_close(out.logprobs.detach(), expected["logprobs"])
    assert all(torch.equal(strided[name].detach(), value) for name, value in before.items())


@pytest.mark.parametrize("train_head", [False, True])
def test_calls_and_backward_passes_repeat_bit_for_bit(train_head: bool) -> None:
    problem = make(6, 33, 8, 50, None, torch.float32, bias=True, mask=True)
    options = {"train_head": train_head, "entropy": True, "chunk_bytes": 2000}
    first, second = (solve(linear_logprob_triton, problem, **options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scoring_builds_no_graph_and_keeps_nothing() -> None:
    problem = make(8, 9, 8, 50, None, torch.float32, bias=False, mask=False)
    problem["hidden_nd"].requires_grad_()
    with torch.no_grad():
        assert not linear_logprob_triton(**problem).logprobs.requires_grad


def test_an_incoming_gradient_of_zero_gives_zero() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    out = linear_logprob_triton(hidden, weight, torch.arange(5))
    d_hidden, d_weight = torch.autograd.grad((out.logprobs * 0.0).sum(), [hidden, weight])
    assert not d_hidden.any() and not d_weight.any()


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "vocabulary first": lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every second id": lambda t: t.repeat_interleave(2, 2)[..., ::2],
}


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [None, 1, 4])
def test_given_logits_in_any_layout(layout: str, dtype: torch.dtype, k: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = (5 * torch.randn((3, 5, 37), generator=generator)).to(dtype)
    index = torch.randint(0, 37, (3, 5) if k is None else (3, 5, k), generator=generator)
    logits = LAYOUTS[layout](plain).requires_grad_()
    log_p = plain.double().requires_grad_()
    expected = torch.log_softmax(log_p, -1)
    torch.testing.assert_close(
        entropy_from_logits(logits), -(expected.exp() * expected).sum(-1).float(), rtol=1e-5, atol=1e-6
    )
    taken = expected.gather(-1, index if k else index.unsqueeze(-1)).view(index.shape)
    got = selective_log_softmax(logits, index)
    torch.testing.assert_close(got, taken.float(), rtol=1e-5, atol=1e-6)
    incoming = torch.randn(index.shape, generator=generator)
    (gradient,) = torch.autograd.grad(got, logits, incoming)
    (exact,) = torch.autograd.grad(taken, log_p, incoming.double())
    assert gradient.dtype == dtype and gradient.shape == logits.shape
    torch.testing.assert_close(gradient.double(), exact, rtol=8 * ROUNDING[dtype], atol=1e-6)


def test_four_unruly_dimensions_and_no_rows() -> None:
    base = torch.randn(4, 3, 2, 6, 21)
    logits = base.permute(2, 0, 3, 1, 4)[:, ::2]
    index = torch.randint(0, 21, logits.shape[:-1])
    torch.testing.assert_close(
        selective_log_softmax(logits, index), torch.log_softmax(logits, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    )
    assert entropy_from_logits(torch.empty(2, 0, 5)).shape == (2, 0)
    assert selective_log_softmax(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)).shape == (0,)
    torch.testing.assert_close(entropy_from_logits(torch.zeros(5)), torch.tensor(math.log(5.0)))
    assert entropy_from_logits(torch.tensor([[0.0, -math.inf, 0.0]])).item() == pytest.approx(math.log(2.0))


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16])
def test_rows_wider_than_the_weight_are_not_rounded(weight_dtype: torch.dtype) -> None:
    """A residual stream in float32 over layers in half precision, in both directions, against float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, generator=generator, requires_grad=True)
    weight = torch.randn(40, generator=generator).to(weight_dtype).requires_grad_()
    passed, normed = layers.rms_norm_triton(x, weight, 1e-5, residual=True)
    assert (passed.dtype, normed.dtype) == (torch.float32, weight_dtype)
    wide, of = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = of * wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(normed.double(), exact, rtol=8e-3, atol=1e-6)  # one rounding
    incoming = torch.randn(5, 40, generator=generator).to(weight_dtype)
    got = torch.autograd.grad((normed.float() * incoming.float()).sum() + passed.sum(), (x, weight))
    expected = torch.autograd.grad((exact * incoming.double()).sum() + wide.sum(), (wide, of))
    torch.testing.assert_close(got[0].double(), expected[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(got[1].double(), expected[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bias", [False, True])
def test_an_addition_to_the_head_rounds_no_logits(dtype: torch.dtype, bias: bool) -> None:
    """One of zeros moves nothing by more than float32 does, and gradients of another are those of float64."""
    problem = make(5, 33, 24, 50, None, dtype, bias=bias, mask=True)
    if bias:  # and numbers that lie apart
        problem["hidden_nd"] = torch.stack([problem["hidden_nd"]] * 2, -1)[..., 0]
    zeros = problem["hidden_nd"].new_zeros(33, 4), problem["weight_vd"].new_zeros(50, 4)
    plain = linear_logprob_triton(**problem, chunk_bytes=2000).logprobs
    torch.testing.assert_close(
        linear_logprob_triton(**problem, chunk_bytes=2000, added=zeros).logprobs, plain, rtol=0, atol=5e-6
    )
    draw = torch.Generator().manual_seed(6)
    factors = [torch.randn(n, 4, generator=draw).to(dtype) / 2 for n in (33, 50)]
    found = []
    for function, wide in ((linear_logprob_triton, dtype), (linear_logprob_reference, torch.float64)):
        leaves = [x.to(wide).detach().requires_grad_() for x in (problem["hidden_nd"], *factors)]
        of_bias = None if problem["bias_v"] is None else problem["bias_v"].to(wide)
        given = {**problem, "hidden_nd": leaves[0], "weight_vd": problem["weight_vd"].to(wide), "bias_v": of_bias}
        out = function(**given, chunk_bytes=2000, added=(leaves[1], leaves[2])).logprobs
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    torch.testing.assert_close(found[0][0].double(), found[1][0], rtol=0, atol=1e-5)
    for got, exact in zip(found[0], found[1], strict=True):
        assert float((got.double() - exact).norm() / exact.norm()) <= 4 * ROUNDING[dtype]
