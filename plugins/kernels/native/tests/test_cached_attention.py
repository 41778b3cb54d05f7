"""Attention to a cache against float64, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_native.cached_attention import CachedAttention
from numpy.typing import NDArray
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled")

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
KV_HEADS, COLUMNS, ROOM = 2, 37, 5


class Case:
    """Queries, a cache with `COLUMNS` - 1 columns of each row, and where its prompts stand.

    Args:
        samples: rows of a prompt; with several, the prompt's columns stand apart.
        scale: of the scores.
    """

    def __init__(self, dtype: torch.dtype, *, group: int = 3, size: int = 32, samples: int = 1, seed: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.starts_p = torch.tensor([0, 7, 19, 3])
        self.samples, self.size, self.heads = samples, size, group * KV_HEADS
        rows = samples * len(self.starts_p)
        self.qkv = torch.randn((rows, self.heads + 2 * KV_HEADS, size), generator=draw).to(dtype)
        # more rows and columns than are in use: what a cache looks like from within
        whole = torch.randn((2, rows + 2, KV_HEADS, COLUMNS + ROOM, size), generator=draw).to(dtype)
        whole[:, :, :, COLUMNS:] = float("nan")
        self.own = whole[:, :rows]
        shape = (2, len(self.starts_p), KV_HEADS, 23, size)
        self.above = torch.randn(shape, generator=draw).to(dtype) if samples > 1 else None
        self.scale = 1.5 * size**-0.5

    def found(self, rows: slice = slice(None)) -> Tensor:
        """By the kernel; `rows` begin and end with a prompt's."""
        n = self.samples
        prompts = slice(rows.start and rows.start // n, rows.stop and rows.stop // n)
        attention = CachedAttention.ready(self.qkv, self.size)
        assert attention is not None
        return attention(
            self.qkv[rows].contiguous(), self.own[:, rows], torch.tensor([COLUMNS]), self.scale, samples=n,
            starts_p=self.starts_p[prompts].clone(), above_hpkwd=None if self.above is None else self.above[:, prompts],
        )  # fmt: skip

    def check(self, found: Tensor) -> None:
        """Against float64: a score is a sum of products in float32, and its rounding is one of its weight, relative;
        what comes out is rounded once."""
        exact, largest = self.exact()
        assert found.dtype == self.qkv.dtype and found.shape == exact.shape
        bound = 4 * 2.0**-24 * largest + 2 * ROUNDING[found.dtype] * np.abs(exact)
        assert (np.abs(found.double().numpy() - exact) <= bound).all()

    def exact(self) -> tuple[NDArray[np.float64], float]:
        """(R, H D) in float64, the newest column from `qkv`; and the largest sum of a score's products without their
        signs, times the largest value."""
        qkv, own = self.qkv.double().numpy(), self.own.double().numpy().copy()
        newest = qkv[:, self.heads :].reshape(len(qkv), 2, KV_HEADS, self.size)
        own[:, :, :, COLUMNS - 1] = newest.transpose(1, 0, 2, 3)
        out = np.zeros((len(qkv), self.heads, self.size))
        largest = 0.0
        for row, start in enumerate(self.starts_p.repeat_interleave(self.samples).tolist()):
            for head in range(self.heads):
                kv = head * KV_HEADS // self.heads
                keys, values = own[:, row, kv, :COLUMNS]
                if self.above is None:
                    keys, values = keys[start:], values[start:]
                else:
                    above = self.above[:, row // self.samples, kv, start:].double().numpy()
                    keys, values = np.concatenate([above[0], keys]), np.concatenate([above[1], values])
                scores = self.scale * keys @ qkv[row, head]
                weights = np.exp(scores - scores.max())
                out[row, head] = weights @ values / weights.sum()
                products = self.scale * np.abs(keys) @ np.abs(qkv[row, head])
                largest = max(largest, products.max() * np.abs(values).max())
        return out.reshape(len(qkv), -1), largest


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("group", [1, 3, 4, 9])
@pytest.mark.parametrize("size", [16, 48, 64, 144])
@pytest.mark.parametrize("samples", [1, 3])
def test_against_float64(dtype: torch.dtype, group: int, size: int, samples: int) -> None:
    case = Case(dtype, group=group, size=size, samples=samples)
    case.check(case.found())
    newest = case.own[:, :, :, COLUMNS - 1].transpose(0, 1).flatten(1, 2)
    assert torch.equal(newest, case.qkv[:, case.heads :])
    assert case.own[:, :, :, COLUMNS:].isnan().all(), "nothing is written behind the newest column"


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("samples", [1, 2])
def test_what_a_row_gets_does_not_depend_on_the_others_nor_on_threads(dtype: torch.dtype, samples: int) -> None:
    case = Case(dtype, samples=samples)
    every = case.found()
    assert torch.equal(case.found(slice(samples, 2 * samples)), every[samples : 2 * samples])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(case.found(), every)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_padding_and_a_prompt_that_stands_apart_change_no_bit(dtype: torch.dtype) -> None:
    """The same columns: padded on the left, without padding, and with the prompt in memory of its own."""
    case = Case(dtype)
    every = case.found()
    attention = CachedAttention.ready(case.qkv, case.size)
    assert attention is not None
    for row, start in enumerate(case.starts_p.tolist()):
        alone, none = case.qkv[row : row + 1], torch.tensor([0])
        dense = case.own[:, row : row + 1, :, start:COLUMNS].contiguous()
        assert torch.equal(
            attention(alone, dense, torch.tensor([COLUMNS - start]), case.scale, starts_p=none)[0], every[row]
        )
        apart, rest = dense[:, :, :, :9].contiguous(), dense[:, :, :, 9:].contiguous()
        found = attention(
            alone, rest, torch.tensor([COLUMNS - start - 9]), case.scale, starts_p=none, above_hpkwd=apart
        )
        assert torch.equal(found[0], every[row])


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_large_scores_and_what_is_not_finite(dtype: torch.dtype) -> None:
    """Scores of hundreds overflow nothing; NaN comes through in its row and head alone."""
    case = Case(dtype)
    case.scale = 200.0
    case.check(case.found())
    case.qkv[1, 2, 5] = float("nan")
    bad = torch.zeros(len(case.qkv), case.heads, dtype=torch.bool)
    bad[1, 2] = True
    assert torch.equal(case.found().view(len(case.qkv), case.heads, -1).isnan().all(-1), bad)
    assert torch.equal(case.found().view(len(case.qkv), case.heads, -1).isnan().any(-1), bad)


def test_sizes_that_it_takes() -> None:
    assert CachedAttention.ready(torch.zeros(2), 16) is not None
    assert CachedAttention.ready(torch.zeros(2), 24) is None
    assert CachedAttention.ready(torch.zeros(2, dtype=torch.float16), 16) is None
