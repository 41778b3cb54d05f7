"""linear_logprob against a float64 NumPy oracle whose gradients are written out by hand."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels.linear_logprob import LinearLogprob, linear_logprob
from finetooth_kernels.references import linear_logprob as linear_logprob_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """One problem: arrays in float64 (rounded to `dtype`), and incoming gradients for both results."""

    hidden: Array
    weight: Array
    bias: Array | None
    targets: Array
    mask: Array | None
    d_logprobs: Array
    d_entropy: Array
    dtype: torch.dtype
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


pytestmark = pytest.mark.usefixtures("implementation")


def make_case(
    seed: int, n: int, d: int, v: int, k: int | None, *, bias: bool, mask: bool, dtype: torch.dtype, **head: Any
) -> Case:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype).double().numpy()

    shape = (n,) if k is None else (n, k)
    return Case(
        hidden=normal(n, d),
        weight=normal(v, d),
        bias=normal(v) if bias else None,
        targets=rng.integers(0, v, size=shape),
        mask=rng.random(n) < 0.6 if mask else None,
        d_logprobs=rng.normal(size=shape).astype(np.float32).astype(np.float64),
        d_entropy=rng.normal(size=n).astype(np.float32).astype(np.float64),
        dtype=dtype,
        **head,
    )


def oracle(case: Case, with_entropy: bool) -> dict[str, Array]:
    """Row by row, through the full Jacobian of the softmax."""
    n, v = case.hidden.shape[0], case.weight.shape[0]
    result = {
        "logprobs": np.zeros(case.targets.shape),
        "entropy": np.zeros(n),
        "hidden": np.zeros_like(case.hidden),
        "weight": np.zeros_like(case.weight),
        "bias": np.zeros(v),
    }
    for i in range(n):
        if case.mask is not None and not case.mask[i]:
            continue
        x = case.scale * (case.weight @ case.hidden[i] + (0.0 if case.bias is None else case.bias))
        tanh = np.zeros(v) if case.softcap is None else np.tanh(x / case.softcap)
        z = (x if case.softcap is None else case.softcap * tanh) / case.temperature
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        p = np.exp(log_p)
        ids = np.atleast_1d(case.targets[i])
        result["logprobs"][i] = log_p[case.targets[i]]
        result["entropy"][i] = -(p * log_p).sum()

        dz = np.zeros(v)
        for token, g in zip(ids, np.atleast_1d(case.d_logprobs[i]), strict=True):
            dz += g * (np.eye(v)[token] - p)
        if with_entropy:
            dz += (np.diag(p) - np.outer(p, p)) @ (-(log_p + 1.0)) * case.d_entropy[i]
        du = dz / case.temperature * (1.0 - tanh**2) * case.scale
        result["hidden"][i] = du @ case.weight
        result["weight"] += np.outer(du, case.hidden[i])
        result["bias"] += du
    return result


def compute(function: Any, case: Case, *, entropy: bool, train_head: bool, **options: Any) -> dict[str, Array]:
    def tensor(array: Array, grad: bool) -> torch.Tensor:
        return torch.from_numpy(array).to(case.dtype).requires_grad_(grad)

    hidden, weight = tensor(case.hidden, True), tensor(case.weight, train_head)
    bias = None if case.bias is None else tensor(case.bias, train_head)
    out: LinearLogprob = function(
        hidden,
        weight,
        torch.from_numpy(case.targets),
        mask=None if case.mask is None else torch.from_numpy(case.mask),
        bias_v=bias,
        scale=case.scale,
        softcap=case.softcap,
        temperature=case.temperature,
        entropy=entropy,
        **options,
    )
    expected_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    assert out.logprobs.dtype == expected_dtype and out.logprobs.shape == case.targets.shape
    objective = (out.logprobs * torch.from_numpy(case.d_logprobs).to(expected_dtype)).sum()
    result = {"logprobs": out.logprobs}
    assert (out.entropy is None) == (not entropy)
    if out.entropy is not None:
        assert out.entropy.dtype == expected_dtype and out.entropy.shape == (case.hidden.shape[0],)
        objective = objective + (out.entropy * torch.from_numpy(case.d_entropy).to(expected_dtype)).sum()
        result["entropy"] = out.entropy
    objective.backward()
    for name, leaf in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if leaf is not None and leaf.requires_grad:
            assert leaf.grad is not None and leaf.grad.dtype == case.dtype
            result[name] = leaf.grad
    return {name: value.detach().double().numpy() for name, value in result.items()}


def assert_close(got: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    for name, value in got.items():
        error = np.linalg.norm(value - expected[name]) / max(1.0, np.linalg.norm(expected[name]))
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


heads = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([1.0, 0.3, -2.0]),
        "softcap": st.sampled_from([None, 2.0, 30.0]),
        "temperature": st.sampled_from([1.0, 0.7, 2.5]),
    }
)
cases = st.builds(
    make_case,
    seed=st.integers(0, 2**20),
    n=st.integers(0, 9),
    d=st.integers(1, 8),
    v=st.integers(1, 17),
    k=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    mask=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
).flatmap(lambda case: heads.map(lambda head: Case(**{**case.__dict__, **head})))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases, chunk_bytes=st.integers(1, 1500), entropy=st.booleans(), train_head=st.booleans())
def test_values_and_gradients_equal_the_oracle(case: Case, chunk_bytes: int, entropy: bool, train_head: bool) -> None:
    got = compute(linear_logprob, case, entropy=entropy, train_head=train_head, chunk_bytes=chunk_bytes)
    assert_close(got, oracle(case, entropy), 1e-5 if case.dtype == torch.float32 else 1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    case=cases,
    dtype=st.sampled_from([(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)]),
    chunk_bytes=st.integers(1, 1500),
    entropy=st.booleans(),
    train_head=st.booleans(),
)
def test_half_precision_errs_by_its_own_rounding_only(
    case: Case, dtype: tuple[torch.dtype, float], chunk_bytes: int, entropy: bool, train_head: bool
) -> None:
    def rounded(array: Array) -> Array:
        return torch.from_numpy(array).to(dtype[0]).double().numpy()

    case = Case(
        **{
            **case.__dict__,
            "dtype": dtype[0],
            "hidden": rounded(case.hidden),
            "weight": rounded(case.weight),
            "bias": None if case.bias is None else rounded(case.bias),
        }
    )
    got = compute(linear_logprob, case, entropy=entropy, train_head=train_head, chunk_bytes=chunk_bytes)
    # Each logit is off by its own rounding; |logit| stays below about 12 here, times what scale and temperature add.
    amplification = 12.0 * max(1.0, abs(case.scale) / case.temperature)
    assert_close(got, oracle(case, entropy), dtype[1] * amplification)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    case=cases,
    chunk_bytes=st.integers(1, 1500),
    entropy=st.booleans(),
    train_head=st.booleans(),
    factor=st.sampled_from([-3.0, 1e-3, 1.0]),
    proves_right=st.booleans(),
    rounds=st.sampled_from([None, torch.bfloat16]),
)
def test_gradients_equal_the_oracle_whatever_was_expected(
    case: Case,
    chunk_bytes: int,
    entropy: bool,
    train_head: bool,
    factor: float,
    proves_right: bool,
    rounds: torch.dtype | None,
) -> None:
    rng = np.random.default_rng(1)
    expected = rng.choice([0.0, 0.5, 1.0, -2.0], size=case.targets.shape)
    came = factor * expected if proves_right else expected + rng.normal(size=expected.shape)
    case = replace(case, d_logprobs=came.astype(np.float32).astype(np.float64), d_entropy=0.0 * case.d_entropy)
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-12
    if rounds is not None:

        def rounded(array: Array) -> Array:
            return torch.from_numpy(array).to(rounds).double().numpy()

        bias = None if case.bias is None else rounded(case.bias)
        case = replace(case, dtype=rounds, hidden=rounded(case.hidden), weight=rounded(case.weight), bias=bias)
        tolerance = 2.0**-8 * 12.0 * max(1.0, abs(case.scale) / case.temperature)
    got = compute(
        linear_logprob,
        case,
        entropy=entropy,
        train_head=train_head,
        chunk_bytes=chunk_bytes,
        expected=torch.from_numpy(expected).float(),
    )
    assert_close(got, oracle(case, False), tolerance)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases, entropy=st.booleans(), train_head=st.booleans())
def test_the_reference_equals_the_oracle(case: Case, entropy: bool, train_head: bool) -> None:
    got = compute(linear_logprob_reference, case, entropy=entropy, train_head=train_head)
    assert_close(got, oracle(case, entropy), 1e-6 if case.dtype == torch.float32 else 1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    case=cases.filter(lambda case: case.hidden.shape[1] > 1), chunk_bytes=st.integers(1, 1500), entropy=st.booleans(),
    trains=st.sampled_from(["nothing", "the addition", "both"]), expects=st.booleans(), cut=st.integers(1, 7),
)  # fmt: skip
def test_an_addition_equals_the_oracle_of_a_wider_head(
    case: Case, chunk_bytes: int, entropy: bool, trains: str, expects: bool, cut: int
) -> None:
    """x W^T + h B^T is the product of [x h] and [W B]."""
    cut = min(cut, case.hidden.shape[1] - 1)

    def added(function: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: Any, **options: Any) -> LinearLogprob:
        base, more = weight[:, :cut].contiguous(), (hidden[:, cut:], weight[:, cut:])
        base = base if trains == "both" else base.detach()
        expected = torch.from_numpy(case.d_logprobs) if expects else None
        result: LinearLogprob = function(hidden[:, :cut], base, targets, added=more, expected=expected, **options)
        return result

    wanted = oracle(case, entropy)
    if trains == "the addition":
        wanted["weight"][:, :cut] = 0.0
    for function in (partial(linear_logprob, chunk_bytes=chunk_bytes), linear_logprob_reference):
        got = compute(partial(added, function), case, entropy=entropy, train_head=trains != "nothing")
        assert_close(got, wanted, 1e-5 if case.dtype == torch.float32 else 1e-12)


def test_the_reference_takes_the_same_arguments() -> None:
    """All but who computes part of it."""
    ours = dict(inspect.signature(linear_logprob).parameters)
    del ours["compiled"]
    assert ours == dict(inspect.signature(linear_logprob_reference).parameters)


@pytest.mark.parametrize("function", [linear_logprob, linear_logprob_reference])
@pytest.mark.parametrize("train_head", [False, True])
def test_top1_is_the_first_largest_logit(function: Any, train_head: bool) -> None:
    weight = torch.zeros(71, 4)
    weight[[5, 40, 70], torch.tensor([0, 1, 2])] = 2.0
    weight[[20, 50], 3] = 2.0  # a tie
    hidden = torch.eye(4)[[2, 0, 1, 3, 0]].requires_grad_()
    mask = torch.tensor([True, True, True, True, False])
    targets = torch.zeros(5, dtype=torch.int64)
    for chunk_bytes in (1, 2000, 10**6):
        out = function(
            hidden,
            weight.requires_grad_(train_head),
            targets,
            mask=mask,
            softcap=3.0,
            top1=True,
            chunk_bytes=chunk_bytes,
        )
        assert out.top1.tolist() == [70, 5, 40, 20, -1] and not out.top1.requires_grad and out.entropy is None
    assert function(hidden, weight, targets).top1 is None
    empty = function(hidden[:0], weight, targets[:0], top1=True).top1
    assert empty.shape == (0,) and empty.dtype == torch.int64


def test_gradcheck() -> None:
    case = make_case(3, 5, 3, 7, 2, bias=True, mask=True, dtype=torch.float64)
    leaves = [torch.from_numpy(a).requires_grad_() for a in (case.hidden, case.weight, case.bias) if a is not None]
    targets, mask = torch.from_numpy(case.targets), torch.arange(5) != 2

    def function(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = linear_logprob(
            hidden, weight, targets, mask=mask, bias_v=bias, scale=0.5, softcap=3.0, entropy=True, chunk_bytes=200
        )
        assert out.entropy is not None
        return out.logprobs, out.entropy

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("train_head", [False, True])
def test_the_entropy_alone_may_be_differentiated(train_head: bool) -> None:
    case = make_case(5, 6, 4, 9, None, bias=True, mask=True, dtype=torch.float64)
    case = Case(**{**case.__dict__, "d_logprobs": np.zeros(6)})
    hidden = torch.from_numpy(case.hidden).requires_grad_()
    weight = torch.from_numpy(case.weight).requires_grad_(train_head)
    assert case.bias is not None and case.mask is not None
    out = linear_logprob(
        hidden,
        weight,
        torch.from_numpy(case.targets),
        mask=torch.from_numpy(case.mask),
        bias_v=torch.from_numpy(case.bias),
        entropy=True,
    )
    assert out.entropy is not None
    out.entropy.backward(torch.from_numpy(case.d_entropy))
    expected = oracle(case, True)
    np.testing.assert_allclose(hidden.grad, expected["hidden"], atol=1e-12)
    if train_head:
        np.testing.assert_allclose(weight.grad, expected["weight"], atol=1e-12)


def test_huge_logits_stay_finite_and_exact() -> None:
    case = make_case(1, 6, 4, 9, None, bias=False, mask=False, dtype=torch.float64)
    case = Case(**{**case.__dict__, "hidden": case.hidden * 1e4})
    assert_close(compute(linear_logprob, case, entropy=True, train_head=True), oracle(case, True), 1e-12)
    single = Case(**{**case.__dict__, "dtype": torch.float32})
    got = compute(linear_logprob, single, entropy=True, train_head=True)
    assert all(np.isfinite(value).all() for value in got.values())
    assert (got["entropy"] >= 0).all() and (got["logprobs"] <= 0).all()


def test_a_confident_row_keeps_its_small_gradient_in_bfloat16() -> None:
    # p = 1 - 2e-4: in bfloat16 p itself is 1, so p - 1 must be formed before rounding.
    hidden = torch.tensor([[8.5]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    linear_logprob(hidden, weight, torch.tensor([0])).logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(1.0 / (1.0 + np.exp(8.5)), rel=1e-2)


@pytest.mark.parametrize("train_head", [False, True])
def test_a_bias_of_minus_infinity_switches_an_entry_off(train_head: bool) -> None:
    case = make_case(2, 5, 4, 9, None, bias=False, mask=False, dtype=torch.float64)
    case = Case(**{**case.__dict__, "targets": case.targets % 8})
    expected = oracle(Case(**{**case.__dict__, "weight": case.weight[:8]}), True)
    expected["weight"] = np.vstack([expected["weight"], np.zeros((1, 4))])
    bias = np.zeros(9)
    bias[8] = -np.inf
    got = compute(linear_logprob, Case(**{**case.__dict__, "bias": bias}), entropy=True, train_head=train_head)
    assert got.pop("bias", np.zeros(9))[8] == 0
    assert_close(got, {**expected, "bias": np.zeros(9)}, 1e-12)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize(("n", "mask"), [(0, None), (4, torch.zeros(4, dtype=torch.bool))])
def test_no_row_at_all_stays_in_the_graph(n: int, mask: torch.Tensor | None, train_head: bool, entropy: bool) -> None:
    hidden = torch.randn(n, 3, requires_grad=True)
    weight = torch.randn(5, 3, requires_grad=train_head)
    out = linear_logprob(hidden, weight, torch.full((n,), -100), mask=mask, entropy=entropy)
    assert out.logprobs.tolist() == [0.0] * n
    (out.logprobs.sum() + (0 if out.entropy is None else out.entropy.sum())).backward()
    assert hidden.grad is not None and hidden.grad.shape == (n, 3) and not hidden.grad.any()
    if train_head:
        assert weight.grad is not None and weight.grad.shape == (5, 3) and not weight.grad.any()


@pytest.mark.parametrize("train_head", [False, True])
def test_masked_rows_may_hold_anything(train_head: bool) -> None:
    hidden = torch.randn(4, 3)
    hidden[1] = torch.nan
    hidden.requires_grad_()
    weight = torch.randn(5, 3, requires_grad=train_head)
    mask = torch.tensor([True, False, True, True])
    out = linear_logprob(hidden, weight, torch.tensor([0, -100, 4, 2]), mask=mask, entropy=True)
    assert out.entropy is not None and out.logprobs[1] == 0 and out.entropy[1] == 0
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert hidden.grad is not None and not hidden.grad[1].any() and torch.isfinite(hidden.grad).all()
    assert weight.grad is None or torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("train_head", [False, True])
def test_gradient_checkpointing_changes_nothing(train_head: bool, reentrant: bool) -> None:
    hidden, weight, targets = torch.randn(6, 4), torch.randn(9, 4), torch.randint(0, 9, (6,))

    def gradients(through_checkpoint: bool) -> list[torch.Tensor]:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_head)]

        def score(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            out = linear_logprob(h, w, targets, entropy=True)
            assert out.entropy is not None
            return out.logprobs + 0.1 * out.entropy

        result = checkpoint(score, *leaves, use_reentrant=reentrant) if through_checkpoint else score(*leaves)
        result.sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    direct, checkpointed = gradients(False), gradients(True)
    assert len(direct) == len(checkpointed) == 1 + train_head
    assert all(torch.equal(a, b) for a, b in zip(direct, checkpointed, strict=True))


@pytest.mark.parametrize("expected", [None, torch.ones(33)], ids=["", "expected"])
@pytest.mark.parametrize("train_head", [False, True])
def test_calls_and_backward_passes_repeat_bit_for_bit(train_head: bool, expected: torch.Tensor | None) -> None:
    hidden = torch.randn(33, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=train_head)
    targets = torch.randint(0, 50, (33,))
    leaves = [hidden, weight] if train_head else [hidden]
    first, second = (
        linear_logprob(hidden, weight, targets, expected=expected, chunk_bytes=2000).logprobs for _ in range(2)
    )
    assert torch.equal(first, second)
    once = torch.autograd.grad(first.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(first.sum(), leaves)
    other = torch.autograd.grad(second.sum(), leaves)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, again, other, strict=True))


def test_what_is_expected_does_not_overflow_float16() -> None:
    rows, small = 40, 2.0**-10
    hidden = torch.full((rows, 2), 2000.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(8, 2, dtype=torch.float16, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)
    logprobs = linear_logprob(hidden, weight, targets, expected=torch.ones(rows)).logprobs
    (gradient,) = torch.autograd.grad(logprobs.sum() * small, weight)
    assert gradient[0].tolist() == pytest.approx([rows * 2000 * 7 / 8 * small] * 2, rel=1e-2)


def test_an_expected_row_that_is_no_number_harms_nothing() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    targets, expected = torch.tensor([0, 4, 2]), torch.tensor([1.0, torch.nan, 1.0])
    got = torch.autograd.grad(linear_logprob(hidden, weight, targets, expected=expected).logprobs.sum(), weight)
    plain = torch.autograd.grad(linear_logprob(hidden, weight, targets).logprobs.sum(), weight)
    assert torch.equal(got[0], plain[0])


def test_inputs_may_be_non_contiguous_and_stay_untouched() -> None:
    hidden = torch.randn(4, 6).t()
    weight = torch.randn(4, 9).t()
    before = hidden.clone(), weight.clone()
    targets = torch.randint(0, 9, (12,))[::2]
    strided, packed = hidden.detach().requires_grad_(), hidden.contiguous().requires_grad_()
    a = linear_logprob(strided, weight, targets, bias_v=torch.ones(18)[::2], chunk_bytes=100).logprobs
    b = linear_logprob(packed, weight.contiguous(), targets.contiguous(), chunk_bytes=100).logprobs
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(strided.grad, packed.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])


def test_under_autocast_inputs_are_cast_as_linear_would() -> None:
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (5,))
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logprob(hidden.bfloat16(), weight, targets, entropy=True)
    expected = linear_logprob(hidden.bfloat16(), weight.bfloat16(), targets, entropy=True)
    assert torch.equal(got.logprobs, expected.logprobs)
    got_grads = torch.autograd.grad(got.logprobs.sum(), [hidden, weight])
    expected_grads = torch.autograd.grad(expected.logprobs.sum(), [hidden, weight])
    assert all(torch.equal(a, b) for a, b in zip(got_grads, expected_grads, strict=True))


def test_second_derivatives_are_refused() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    out = linear_logprob(hidden, torch.randn(5, 4), torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad((out.logprobs**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
