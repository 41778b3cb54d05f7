"""Attention over segments by interpreted Triton kernels, against masked attention differentiated in float64.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from finetooth_kernels import segment_attention as plain
from finetooth_kernels.segments import Looks, Segment
from finetooth_triton import gpu, segments
from finetooth_triton.segments import segment_attention_triton, windowed_attention_triton
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of the largest number."""
Tree = tuple[Segment, ...]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else computes, and 16 rows meet 32 columns."""
    monkeypatch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(16, 32, 16, 4, 2))
    for name in ("segment_attention", "windowed_attention"):
        monkeypatch.setattr(plain, name, None)


def tree_of(rows: int) -> Tree:
    """A sequence, a prompt with three answers of which one has two ends, and single rows."""
    first, last = rows // 3, rows - 2
    inner = first + rows // 4
    return (
        Segment(0, first, first), Segment(first, first + 9, last), Segment(first + 9, inner, inner),
        Segment(inner, inner + 20, last - 7), Segment(inner + 20, inner + 23, inner + 23),
        Segment(inner + 23, last - 7, last - 7), Segment(last - 7, last, last), Segment(last, last + 1, last + 1),
        Segment(last + 1, rows, rows),
    )  # fmt: skip


def sees(tree: Tree, window: int) -> Tensor:
    """Who sees whom, from the definitions; positions are counted along a sequence."""
    rows = tree[-1].stop
    mask = torch.zeros(rows, rows, dtype=torch.bool)
    for segment in tree:
        mask[segment.start : segment.below, segment.start : segment.stop] = True
    mask.tril_()
    places = mask.sum(1)
    return mask & (places[:, None] - places < window) if window else mask


def exact(qkv: Tensor, tree: Tree, looks: Looks, heads: int, kv_heads: int) -> Tensor:
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
    k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q, k) * looks.scale
    scores = scores if looks.softcap is None else looks.softcap * torch.tanh(scores / looks.softcap)
    scores = scores.masked_fill(~sees(tree, looks.window), -torch.inf)
    if looks.sinks is not None:
        scores = torch.cat([scores, looks.sinks[:, None, None].expand(-1, len(qkv), 1)], 2)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1)[..., : len(qkv)], v)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(tree: Tree, dtype: torch.dtype, window: int, cap: float | None, *, sunk: bool, heads: tuple[int, int],
          size: int) -> None:  # fmt: skip
    rows = tree[-1].stop
    given = [normal(rows, heads[0] + 2 * heads[1], size).to(dtype), normal(heads[0], seed=1).to(dtype)]
    grad = normal(rows, heads[0], size, seed=2).to(dtype)

    def results(function: object, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
        looks = Looks(0.3, window, cap, leaves[1] if sunk else None)
        out = function(leaves[0], tree, looks, heads=heads[0], kv_heads=heads[1])  # type: ignore[operator]
        return [out, *torch.autograd.grad(out, leaves[: 1 + sunk], grad)]

    got = results(windowed_attention_triton, [x.clone().requires_grad_() for x in given], grad)
    wanted = results(
        lambda x, *rest, heads, kv_heads: exact(x, *rest, heads, kv_heads),
        [x.double().requires_grad_() for x in given], grad.double(),
    )  # fmt: skip
    for name, ours, theirs in zip(("out", "rows", "sinks"), got, wanted, strict=False):
        off = float((ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max())
        assert ours.dtype == dtype and off < TOLERANCE[dtype], (name, off)


@pytest.mark.parametrize("rows", [127, 128, 129])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients_are_those_of_masked_attention(rows: int, dtype: torch.dtype) -> None:
    check(tree_of(rows), dtype, 0, None, sunk=False, heads=(4, 2), size=16)


@pytest.mark.parametrize("rows", [127, 128, 129])
@pytest.mark.parametrize(
    ("window", "cap", "sunk"), [(17, None, False), (0, 0.7, False), (0, None, True), (33, 1.5, True)]
)
def test_so_they_are_with_windows_caps_and_sinks(rows: int, window: int, cap: float | None, sunk: bool) -> None:
    check(tree_of(rows), torch.float32, window, cap, sunk=sunk, heads=(3, 1), size=20)


def test_sinks_in_half_precision() -> None:
    check(tree_of(127), torch.bfloat16, 17, 1.5, sunk=True, heads=(2, 2), size=33)


@pytest.mark.parametrize(("tiles", "window"), [((64, 32), 300), ((32, 64), 0)])
def test_long_sequences(monkeypatch: pytest.MonkeyPatch, tiles: tuple[int, int], window: int) -> None:
    monkeypatch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(*tiles, 16, 4, 2))
    for tree in (tree_of(1025), (Segment(0, 1025, 1025),)):
        check(tree, torch.float32, window, None, sunk=False, heads=(2, 1), size=16)


def test_blocks_that_a_row_does_not_see_are_not_read() -> None:
    """Rows of another sequence, of another answer to a prompt, and behind a window; NaN shows where one is read."""
    tree = (Segment(0, 32, 96), Segment(32, 64, 64), Segment(64, 96, 96), Segment(96, 192, 192))
    for first, last, window, reached in (
        (0, 32, 0, [*range(96)]), (32, 64, 0, [*range(32, 64)]), (64, 96, 0, [*range(64, 96)]),
        (96, 128, 20, [*range(96, 160)]), (96, 128, 0, [*range(96, 192)]),
    ):  # fmt: skip
        qkv = normal(192, 3, 16)
        qkv[first:last] = torch.nan
        out = windowed_attention_triton(qkv, tree, Looks(0.3, window), heads=1, kv_heads=1)
        assert set(out.isnan().any(-1).flatten().nonzero().flatten().tolist()) <= set(reached)


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("tree", [tree_of(400), (Segment(0, 97, 97), Segment(97, 400, 400))], ids=["tree", "sequences"])
def test_runs_have_every_block_that_is_seen_and_of_sequences_no_other(tree: Tree, window: int) -> None:
    mask = torch.nn.functional.pad(sees(tree, window), (0, 16, 0, 16)).view(26, 16, 13, 32).any(3).any(1)
    _, _, *found = segments._layout(tree, window, 16, 32, torch.device("cpu"))
    for (offsets, runs), wanted in ((found[:2], mask), (found[2:], mask.t())):
        for block, seen in enumerate(wanted):
            ends = runs.view(-1, 2)[offsets[block] : offsets[block + 1]].tolist()
            walked = [at for first, last in ends for at in range(first, last)]
            assert set(seen.nonzero().flatten().tolist()) <= set(walked)
            assert all(before[1] < after[0] for before, after in pairwise(ends))
            if len(tree) == 2 and not window:
                assert walked == seen.nonzero().flatten().tolist()


@pytest.mark.parametrize("window", [0, 40])
def test_rows_that_are_only_seen_walk_through_nothing(window: int) -> None:
    """Others get the same bits, whatever the queries of these are."""
    tree = (Segment(0, 97, 97, 70), Segment(97, 400, 400, 250))
    qkv = normal(400, 3, 16)
    plain_tree = tuple(replace(one, given=0) for one in tree)
    whole = windowed_attention_triton(qkv, plain_tree, Looks(0.3, window), heads=1, kv_heads=1)
    asked = [row for one in tree for row in range(one.start + one.given, one.stop)]
    hidden = [row for row in range(400) if row not in asked]
    qkv[hidden, 0] = torch.nan
    out = windowed_attention_triton(qkv, tree, Looks(0.3, window), heads=1, kv_heads=1)
    assert torch.equal(out[asked], whole[asked])
    _, _, offsets, *_ = segments._layout(tree, window, 16, 32, torch.device("cpu"))
    blocks = offsets[:26].diff().nonzero().flatten().tolist()
    assert blocks == sorted({row // 16 for row in asked})


def test_what_kernels_do_not_read_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tree, wide = tree_of(127), normal(127, 3, 272)
    for given in (wide.double(), wide):
        out = segment_attention_triton(given, tree, heads=1, kv_heads=1, scale=0.3)
        torch.testing.assert_close(out, plain.segment_attention(given, tree, heads=1, kv_heads=1, scale=0.3))
    with pytest.raises(ValueError, match="the segments hold 3 rows"):
        segment_attention_triton(normal(4, 3, 16), (Segment(0, 3, 3),), heads=1, kv_heads=1, scale=0.3)
