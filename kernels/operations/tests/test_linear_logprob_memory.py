"""What linear_logprob holds and computes, seen by a dispatch mode that watches every torch operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetooth_kernels import chunked_head
from finetooth_kernels.linear_logprob import linear_logprob
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KIB = 2**10


@pytest.fixture(autouse=True)
def seen_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in blocks that are used again do not come from an operation, which is all that is watched here."""
    monkeypatch.setattr(chunked_head, "new_empty", _by_torch)


def _by_torch(like: torch.Tensor, shape: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    return like.new_empty(like.shape if shape is None else shape, dtype=dtype)


class Watch(TorchDispatchMode):
    """Records the peak of bytes alive in storages made under it, the largest one, and every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self.products: list[tuple[int, int, int]] = []
        self._inputs: set[int] = set()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                self._inputs.add(tensor.untyped_storage()._cdata)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear"):
            left, right = args[:2] if name == "mm" else args[1:3]
            self.products.append((left.shape[0], left.shape[1], right.shape[1]))
        self._alive = {key: pair for key, pair in self._alive.items() if not pair[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._inputs:
                    self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
                    self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def run(vocabulary: int, chunk_bytes: int, *, rows: int = 48, train_head: bool = False, k: int | None = None,
        dtype: torch.dtype = torch.float32, mask: torch.Tensor | None = None, backward: bool = True,
        **options: Any) -> Watch:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 4, generator=generator).to(dtype).requires_grad_(backward)
    weight = torch.randn(vocabulary, 4, generator=generator).to(dtype).requires_grad_(train_head)
    targets = torch.randint(0, vocabulary, (rows,) if k is None else (rows, k), generator=generator)
    with Watch() as watch:
        out = linear_logprob(hidden, weight, targets, mask=mask, chunk_bytes=chunk_bytes, **options)
        if backward:
            total = out.logprobs.sum()
            (total if out.entropy is None else total + out.entropy.sum()).backward()
    return watch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"entropy": True}, {"softcap": 5.0, "entropy": True}, {"k": 3, "softcap": 5.0}], ids=str
)
def test_peak_memory_does_not_grow_with_the_vocabulary(options: dict[str, Any], dtype: torch.dtype) -> None:
    chunk_bytes = 1024 * KIB
    for vocabulary in (2**11, 2**13, 2**15):
        watch = run(vocabulary, chunk_bytes, dtype=dtype, **options)
        # 48 rows of 4 hidden values, 3 targets and a few numbers each, some of them twice: well under 24 KiB.
        assert watch.peak <= chunk_bytes + 24 * KIB
        if vocabulary == 2**15:
            whole = 48 * vocabulary * 4
            assert whole > 5 * chunk_bytes and watch.peak >= chunk_bytes // 4, "the chunk is used, and the test sees it"


def test_the_watch_sees_whole_logits() -> None:
    """The measuring device itself: the naive path must fail the test above."""
    hidden, weight = torch.randn(48, 4, requires_grad=True), torch.randn(2**13, 4)
    with Watch() as watch:
        torch.log_softmax(hidden @ weight.t(), 1)[:, 0].sum().backward()
    assert watch.peak >= 2 * 48 * 2**13 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_head_adds_only_its_gradient(dtype: torch.dtype) -> None:
    vocabulary, chunk_bytes = 2**13, 256 * KIB
    watch = run(vocabulary, chunk_bytes, train_head=True, dtype=dtype)
    gradient = vocabulary * 4 * 4  # float32 sum; beside it a chunk's product, or the result, in the weight's dtype
    assert watch.peak <= chunk_bytes + (gradient if dtype == torch.float32 else 2 * gradient) + 24 * KIB
    assert watch.largest <= max(chunk_bytes, gradient)


def test_a_row_larger_than_the_chunk_goes_alone() -> None:
    watch = run(2**12, 1)
    assert {rows for rows, _, columns in watch.products if columns == 2**12} == {1}
    assert watch.largest <= 2**12 * 4
    assert watch.peak <= 4 * 2**12 * 4 + 24 * KIB


@pytest.mark.parametrize("options", [{}, {"train_head": True}, {"k": 2}, {"entropy": True}], ids=str)
def test_masked_rows_are_never_computed(options: dict[str, Any]) -> None:
    mask = torch.zeros(48, dtype=torch.bool)
    mask[[3, 4, 11, 30, 31, 47, 20]] = True
    watch = run(64, 64 * 4 * 4, mask=mask, **options)
    to_logits = [rows for rows, inner, columns in watch.products if (inner, columns) == (4, 64)]
    passes = 1 if options == {} else 2
    assert sum(to_logits) == 7 * passes
    to_hidden = [rows for rows, inner, columns in watch.products if (inner, columns) == (64, 4)]
    assert sum(to_hidden) == 7 * (2 if options == {"entropy": True} else 1)


def test_the_backward_pass_of_a_frozen_head_multiplies_nothing() -> None:
    chunks = 4
    assert len(run(64, 12 * 64 * 4 + 2 * 64 * 4).products) == 2 * chunks
    assert len(run(64, 12 * 64 * 4 + 2 * 64 * 4, train_head=True).products) == 4 * chunks


def test_what_is_expected_saves_a_product_and_what_proves_wrong_costs_one() -> None:
    chunks = 4
    watch = run(64, 12 * 64 * 4 + 2 * 64 * 4, train_head=True, expected=torch.ones(48))
    assert len(watch.products) == 3 * chunks
    wrong = run(64, 12 * 64 * 4 + 2 * 64 * 4, train_head=True, expected=torch.arange(48.0))
    assert len(wrong.products) == (3 + 3) * chunks


@pytest.mark.parametrize("came", [0.0, 1.0])
def test_zeros_that_are_expected_and_come_multiply_nothing_again(came: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 4, generator=generator).requires_grad_() for rows in (48, 64))
    targets, chunks = torch.zeros(48, dtype=torch.int64), 4
    with Watch() as watch:
        got = linear_logprob(hidden, weight, targets, expected=torch.zeros(48), chunk_bytes=12 * 64 * 4 + 2 * 64 * 4)
        (came * got.logprobs.sum()).backward()
    assert len(watch.products) == (3 if came == 0.0 else 3 + 3) * chunks
    want = torch.autograd.grad(came * linear_logprob(hidden, weight, targets).logprobs.sum(), [hidden, weight])
    for have, wanted in zip((hidden.grad, weight.grad), want, strict=True):
        torch.testing.assert_close(have, wanted)


def test_a_head_that_trains_alone_needs_no_slopes() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(48, 4, generator=generator), torch.randn(64, 4, generator=generator).requires_grad_()
    targets, chunks = torch.randint(0, 64, (48,), generator=generator), 4
    came = torch.rand(48, generator=generator)
    with Watch() as watch:
        got = linear_logprob(hidden, weight, targets, expected=3.0 * came, chunk_bytes=12 * 64 * 4 + 2 * 64 * 4)
        (got.logprobs * came).sum().backward()
    assert len(watch.products) == 2 * chunks
    (want,) = torch.autograd.grad((linear_logprob(hidden, weight, targets).logprobs * came).sum(), weight)
    torch.testing.assert_close(weight.grad, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expected_gradient_adds_only_its_sum(dtype: torch.dtype) -> None:
    vocabulary, chunk_bytes = 2**13, 256 * KIB
    watch = run(vocabulary, chunk_bytes, train_head=True, dtype=dtype, expected=torch.ones(48))
    gradient = vocabulary * 4 * 4
    assert watch.peak <= chunk_bytes + 2 * gradient + 24 * KIB  # the sum, and what is handed on
    assert watch.largest <= max(chunk_bytes, gradient)


def test_without_a_gradient_only_the_logits_are_multiplied() -> None:
    assert len(run(64, 2**20, backward=False).products) == 1
    hidden, weight = torch.randn(48, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    with torch.no_grad(), Watch() as watch:
        out = linear_logprob(hidden, weight, torch.zeros(48, dtype=torch.int64), entropy=True)
    assert len(watch.products) == 1 and not out.logprobs.requires_grad
    with torch.no_grad(), Watch() as watch:
        linear_logprob(hidden, weight.detach(), torch.zeros(48, dtype=torch.int64))
    assert len(watch.products) == 1
