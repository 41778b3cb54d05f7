"""What is needed of logits, on CPUs: against float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels import logits as module
from finetooth_kernels.contract import ids_checked
from finetooth_kernels.logits import entropy_from_logits, logits_statistics, most_likely, selective_log_softmax
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "vocabulary first": lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every second id": lambda t: t.repeat_interleave(2, 2)[..., ::2],
}
ULP = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def log_p(logits: Tensor) -> np.ndarray[Any, Any]:
    z = logits.detach().double().numpy()
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", list(ULP))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 1000])
def test_entropy(layout: str, dtype: torch.dtype, chunk_size: int) -> None:
    logits = LAYOUTS[layout](5 * torch.randn((3, 5, 37), generator=torch.Generator().manual_seed(0)).to(dtype))
    got = entropy_from_logits(logits.requires_grad_(), chunk_size=chunk_size)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and not got.requires_grad
    exact = log_p(logits)
    expected = -(np.exp(exact) * exact).sum(-1)
    # The logarithm of a sum of exponentials is off by one rounding of 1, in nats, where one id takes it all.
    np.testing.assert_allclose(got, expected, **({"atol": 1e-6} if dtype != torch.float64 else {"atol": 1e-14}))


def test_entropy_of_extremes() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0], [1e30, 0.0, 0.0], [1e8, 1e8, -1e8]])
    np.testing.assert_allclose(entropy_from_logits(logits), [math.log(2.0), 0.0, math.log(2.0)], rtol=1e-6)
    assert entropy_from_logits(torch.empty(2, 0, 5)).shape == (2, 0)
    np.testing.assert_allclose(entropy_from_logits(torch.zeros(5)), math.log(5.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", list(ULP))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [None, 1, 4])
@pytest.mark.parametrize("block_bytes", [1, 1000, 10**6])
def test_selective_log_softmax(
    layout: str, dtype: torch.dtype, k: int | None, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    generator = torch.Generator().manual_seed(0)
    logits = LAYOUTS[layout]((5 * torch.randn((3, 5, 37), generator=generator)).to(dtype)).requires_grad_()
    index = torch.randint(0, 37, (3, 5) if k is None else (3, 5, k), generator=generator)
    got = selective_log_softmax(logits, index)
    assert got.shape == index.shape and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    ids = index.numpy().reshape(3, 5, -1)
    exact = log_p(logits)
    expected = np.take_along_axis(exact, ids, -1).reshape(index.shape)
    np.testing.assert_allclose(got.detach(), expected, rtol=1e-5 if dtype != torch.float64 else 1e-12)

    incoming = torch.randn(index.shape, generator=generator).to(got.dtype)
    (gradient,) = torch.autograd.grad(got, logits, incoming)
    d = incoming.double().numpy().reshape(3, 5, -1)
    expected_gradient = -np.exp(exact) * d.sum(-1, keepdims=True)
    for column in range(ids.shape[-1]):
        expected_gradient += d[..., column, None] * (np.arange(37) == ids[..., column, None])
    assert gradient.dtype == dtype
    with torch.no_grad():  # compiled, where logits stand next to each other
        np.testing.assert_allclose(selective_log_softmax(logits, index), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.double(), expected_gradient, rtol=4 * ULP[dtype], atol=4 * ULP[dtype])


@pytest.mark.parametrize("dtype", list(ULP))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_most_likely(layout: str, dtype: torch.dtype) -> None:
    """Many are equally likely, one behind the 1,024 that kernels sum at a time."""
    values = torch.randint(0, 9, (3, 5, 1100), generator=torch.Generator().manual_seed(0)).to(dtype)
    values[2, 4, 1090] = 12.0
    logits = LAYOUTS[layout](values)
    ids, logprobs = most_likely(logits.requires_grad_())
    assert ids.shape == logprobs.shape == (3, 5) and not logprobs.requires_grad and int(ids[2, 4]) == 1090
    assert logprobs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert np.array_equal(ids, logits.detach().double().numpy().argmax(-1))
    np.testing.assert_allclose(logprobs, log_p(logits).max(-1), rtol=1e-6)


def test_most_likely_of_extremes() -> None:
    """Who takes all has exactly 0, never more; without a number there is none to be found, and nothing breaks."""
    ids, logprobs = most_likely(torch.tensor([[-math.inf, 80.0, -80.0], [-3.0, -3.0, -math.inf]]))
    assert ids.tolist() == [1, 0] and logprobs[0] == 0
    assert most_likely(torch.full((1, 3), math.nan))[1].isnan().all()
    assert most_likely(torch.empty(0, 5))[0].shape == (0,)
    with pytest.raises(ValueError, match="V >= 1"):
        most_likely(torch.empty(2, 0))


def test_gradcheck() -> None:
    logits = torch.randn((4, 6), dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 5], [2, 2], [1, 4], [3, 0]])
    assert torch.autograd.gradcheck(lambda x: selective_log_softmax(x, index), [logits])


def test_no_copy_of_the_logits_is_made() -> None:
    """Nothing larger than a few rows is made on the way, whatever the strides."""
    rows, vocabulary = 64, 2**12
    logits = torch.zeros((vocabulary, 2 * rows), dtype=torch.bfloat16).t()[::2]
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            whole = logits.untyped_storage().data_ptr()
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != whole:
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    with Watch():
        entropy_from_logits(logits, chunk_size=4)
    assert 4 * vocabulary * 4 <= largest <= 8 * vocabulary * 4


GOOD = {"logits": torch.zeros(3, 4, 7), "index": torch.zeros(3, 4, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"index": torch.zeros(3, dtype=torch.int64)}, "index must have shape"),
        ({"index": torch.zeros(3, 4, 0, dtype=torch.int64)}, "K >= 1"),
        ({"index": torch.zeros(3, 4)}, "index must be int64"),
        ({"index": torch.full((3, 4), 7)}, "index holds id 7 at (0, 0), outside the vocabulary of 7"),
        ({"index": torch.full((3, 4), -100)}, "index holds id -100"),
        ({"index": torch.zeros(3, 4, dtype=torch.int64, device="meta")}, "index is on meta"),
        ({"logits": torch.zeros(3, 4, 7).long()}, "logits have unsupported dtype"),
        ({"logits": torch.zeros(3, 4, 0)}, "V >= 1"),
        ({"logits": torch.tensor(1.0)}, "V >= 1"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(change: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        selective_log_softmax(**{**GOOD, **change})
    assert says in str(caught.value) and "\n" not in str(caught.value)
    if "logits" in change:
        with pytest.raises(ValueError, match="logits"):
            entropy_from_logits(change["logits"])


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_of_zero_is_refused(chunk_size: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1 row, got {chunk_size}"):
        entropy_from_logits(torch.zeros(2, 3), chunk_size=chunk_size)


def test_ids_that_the_caller_has_checked_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at them an accelerator must wait for what it computes."""
    looked: list[Tensor] = []
    monkeypatch.setattr("finetooth_kernels.logits.extremes", lambda ids: looked.append(ids) or (0, 0))
    logits, ids = torch.randn(2, 5), torch.tensor([1, 4])
    with ids_checked():
        inside = logits_statistics(logits, ids).logprobs
    assert not looked
    assert torch.equal(inside, logits_statistics(logits, ids).logprobs) and len(looked) == 1
