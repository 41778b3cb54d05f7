"""Rows one more than the second and third dimension of a grid hold, by every kernel that takes a row at a time.

Of a launch for all rows the programs of some are interpreted; their numbers must be those of these rows alone, which
other tests hold against float64. Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported.
test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from finetooth_kernels.dropout import Dropped
from finetooth_triton import layers
from finetooth_triton import logits as dispatch
from finetooth_triton.cached_attention import CachedAttention
from finetooth_triton.directions import low_rank_linear_triton
from finetooth_triton.integers import IntegerKernels
from finetooth_triton.operations import entropy_from_logits, selective_log_softmax
from torch import Tensor
from triton.runtime import interpreter

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

ROWS = 65_537
SOME = (0, 1, 32_768, 65_534, 65_535, 65_536)
WIDTH = 8
ONES, ANGLES = torch.linspace(0.5, 1.5, WIDTH), torch.linspace(0.0, 1.0, WIDTH // 2)
WORDS, COLUMNS = torch.arange(ROWS, dtype=torch.int32) * 7919, torch.arange(WIDTH, dtype=torch.int32)


def dora(x: Tensor, words: Tensor) -> Tensor:
    """A layer with DoRA, whose kernels scale rows."""
    weight = torch.linspace(-1.0, 1.0, 4 * WIDTH).view(4, WIDTH)
    added = [(weight[:2] * 0.5, weight[:, :2] * 0.25, 0.5)]
    return low_rank_linear_triton(x, weight, None, (4,), added, magnitudes=[torch.ones(4)])


def dropping(x: Tensor, words: Tensor) -> Tensor:
    """A layer with LoRA and dropout."""
    weight = torch.linspace(-1.0, 1.0, 4 * WIDTH).view(4, WIDTH)
    dropped = [Dropped(words, COLUMNS, 1 << 30, 1.5)]
    return low_rank_linear_triton(x, weight, None, (4,), [(weight[:2], weight[:, :2], 0.5)], dropped=dropped)


def attended(x: Tensor, words: Tensor) -> Tensor:
    """One query a row to a cache of its own that holds nothing else yet."""
    attend, own = CachedAttention.ready(x, WIDTH), torch.zeros(2, len(x), 1, 2, WIDTH)
    assert attend is not None
    return attend(x.detach(), own, torch.tensor([2]), 0.25, starts_p=torch.zeros(len(x), dtype=torch.int64))


def normed(x: Tensor, words: Tensor) -> Tensor:
    """Whole numbers in, whole numbers out: the same in each row, in another order, so that all share one scale."""
    made = IntegerKernels().normed(x.argsort(-1).to(torch.int8), torch.ones(1), torch.ones(WIDTH), None, 1e-5, 8, False)
    assert made is not None
    return made.q.float()


CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "rms_norm": ((WIDTH,), lambda x, words: layers.rms_norm_triton(x, ONES, 1e-5)),
    "gated": ((WIDTH,), lambda x, words: layers.gated_mlp_triton(x, "silu")),
    "rotate": ((2, WIDTH), lambda x, words: layers.rotary_triton(x, *turns(words), 2)),
    "norm_rotary": ((4, WIDTH), lambda x, words: layers.norm_rotary_triton(x, ONES, ONES, *turns(words), 2, 1e-5)),
    "gated_norm": ((2, WIDTH), lambda x, words: layers.gated_norm_triton(x[:, 0], x[:, 1], ONES, 1e-5)),
    "dropout": ((WIDTH,), lambda x, words: layers.keyed_dropout_triton(x, words, COLUMNS, 1 << 30, 1.5)),
    "entropy": ((WIDTH,), lambda x, words: entropy_from_logits(x)),
    "log_softmax": ((WIDTH,), lambda x, words: selective_log_softmax(x, words.long().abs() % WIDTH)),
    "scaled": ((WIDTH,), dora),
    "masked": ((WIDTH,), dropping),
    "cached_attention": ((3, WIDTH), attended),
    "integer_norm": ((WIDTH,), normed),
}


def turns(words: Tensor) -> tuple[Tensor, Tensor]:
    """Angles of each row."""
    angles = words[:, None] * ANGLES
    return angles.cos(), angles.sin()


def solved(case: str, at: Any) -> list[Tensor]:
    """What rows yield, and the gradient of their input if there is one."""
    shape, compute = CASES[case]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((ROWS, *shape), generator=draw)[at].requires_grad_()
    y = compute(x, WORDS[at])
    if not y.requires_grad:
        return [y]
    return [y.detach(), *torch.autograd.grad(y, x, torch.randn((ROWS, *y.shape[1:]), generator=draw)[at])]


def programs(*of: int) -> Sequence[int]:
    """Of the programs for all rows or blocks of them those that take `SOME`, and their neighbours."""
    if len(of) > 1 or of[0] < ROWS // 256:
        return range(*of)
    return sorted({row * of[0] // ROWS + by for row in SOME for by in (-1, 0, 1)} & set(range(*of)))


@pytest.mark.parametrize("case", CASES)
def test_one_row_more_than_a_grid(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    some, launched = torch.tensor(SOME), []

    def begin(x: int, y: int, z: int) -> None:
        assert max(y, z) < 1 << 16, "no GPU launches so many"
        launched.append((x, y, z))
        dimension(x, y, z)

    monkeypatch.setattr(dispatch, "has_kernels", lambda device, dtype: True)
    alone = solved(case, some)
    dimension = interpreter.interpreter_builder.set_grid_dim
    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_dim", begin)
    monkeypatch.setattr(interpreter, "range", programs, raising=False)
    whole = solved(case, slice(None))
    assert launched
    for got, expected in zip(whole, alone, strict=True):
        torch.testing.assert_close(got[some], expected)
