"""Tensors from blocks hold what is written to them as long as they live, and their memory is used again afterwards."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import pytest
import torch
from finetooth_kernels import memory
from finetooth_kernels.memory import ALONE_BYTES, ARENA_BYTES, SMALLEST, Arena, Blocks, lasting, new_empty, new_lasting
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SHAPES = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=8)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocks]:
    """Of this test alone, and small."""
    made = Blocks()
    monkeypatch.setattr(memory, "BLOCKS", made)
    monkeypatch.setattr(memory, "ARENA_BYTES", 2**16)
    yield made


def filled(tensors: list[Tensor]) -> None:
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)


@settings(deadline=None)
@given(SHAPES, DTYPES)
def test_tensors_lie_apart(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    blocks = Blocks()
    arena = Arena(blocks)
    tensors = [arena.empty(shape, dtype) for shape in shapes]
    filled(tensors)
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert bool((tensor == number + 1).all())
        assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0
        assert not tensor._is_view()


def test_a_block_is_used_again_when_its_last_tensor_is_gone(blocks: Blocks) -> None:
    first = Arena(blocks)
    a, b = first.empty((10, 20), torch.float32), first.empty((5,), torch.bfloat16)
    place = a.data_ptr()
    del a, first
    other = Arena(blocks).empty((10, 20), torch.float32)
    assert other.data_ptr() != place and len(blocks) == 2  # b still lies in the first
    del b
    assert Arena(blocks).empty((10, 20), torch.float32).data_ptr() == place and len(blocks) == 2


def test_a_graph_keeps_its_block(blocks: Blocks) -> None:
    """What backward will read is not written over by the next pass, though no variable holds it."""
    weight = torch.ones(40, requires_grad=True)
    kept = Arena(blocks).empty((40,), torch.float32)
    kept.fill_(3.0)
    loss = (weight * kept).sum()
    del kept
    Arena(blocks).empty((40,), torch.float32).fill_(-1.0)
    loss.backward()
    assert weight.grad is not None and bool((weight.grad == 3.0).all())


def test_more_than_a_block_takes_another(blocks: Blocks) -> None:
    arena = Arena(blocks)
    tensors = [arena.empty((2**12,), torch.float32) for _ in range(10)]  # 16 KiB each, four in a block
    filled(tensors)
    assert len(blocks) == 3 and all(bool((tensor == n + 1).all()) for n, tensor in enumerate(tensors))
    large = arena.empty((2**16,), torch.float32)
    large.fill_(7.0)
    assert len(blocks) == 4 and all(bool((tensor == n + 1).all()) for n, tensor in enumerate(tensors))


def test_large_tensors_stand_alone_and_small_ones_are_left_to_malloc(blocks: Blocks) -> None:
    like = torch.zeros(4, SMALLEST // 16)
    large, small = new_empty(like), new_empty(like, (2, 3), torch.bfloat16)
    assert len(blocks) == 1 and large.shape == like.shape and large.dtype == like.dtype
    assert small.shape == (2, 3) and small.dtype == torch.bfloat16
    place = large.data_ptr()
    other = new_empty(like)
    assert other.data_ptr() != place
    del large
    assert new_empty(like, (7, SMALLEST)).data_ptr() == place, "one size of block serves tensors of most sizes"


def test_blocks_do_not_begin_at_the_same_place_of_a_page(blocks: Blocks) -> None:
    like = torch.zeros(SMALLEST)
    tensors = [new_empty(like) for _ in range(8)]
    assert len({tensor.data_ptr() % 4096 for tensor in tensors}) == 8


def test_forgetting_gives_back_what_is_not_in_use(blocks: Blocks) -> None:
    like = torch.zeros(SMALLEST)
    held, freed = new_empty(like), new_empty(like)
    held.fill_(5.0)
    del freed
    blocks.forget()
    assert len(blocks) == 1 and bool((held == 5.0).all())


def test_without_memory_for_a_block_malloc_is_asked(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory, "_mapped", refuse)
    assert new_empty(torch.zeros(SMALLEST)).shape == (SMALLEST,)
    assert Arena(blocks).empty((4, 5), torch.float32).shape == (4, 5)


def test_threads_never_share_a_block(blocks: Blocks) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            arena = Arena(blocks)
            tensors = [arena.empty((64,), torch.float32) for _ in range(4)]
            for tensor in tensors:
                tensor.fill_(number)
            wrong.extend(int((tensor != number).sum()) for tensor in tensors)

    threads = [Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wrong) == 0
    assert len(blocks) <= 2 * 8  # a round lets go of the one before when it has its own


def test_blocks_are_larger_than_what_is_cut_from_them() -> None:
    assert SMALLEST < ALONE_BYTES < ARENA_BYTES


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing says what lies in memory")
@pytest.mark.parametrize("together", [False, True])
def test_what_lasts_goes_back_to_the_system_whole(together: bool) -> None:
    """Also when small tensors were made in between, which live on."""
    like, size = torch.empty(0), 2**24
    arena = Arena(Blocks(large_pages=True))
    before = resident()
    with lasting(arena) if together else nullcontext():
        made = [(new_lasting(like, (size // 16, 4)).fill_(1.0), torch.ones(3)) for _ in range(16)]
    held = resident()
    small = [one for _, one in made]
    del made, arena
    assert held - before > 15 * size and resident() - before < size
    assert all(bool((one == 1).all()) for one in small)


def test_what_lasts_lies_in_the_arena_of_its_thread() -> None:
    like, blocks = torch.empty(0, dtype=torch.bfloat16), Blocks()
    with lasting(Arena(blocks)):
        first, second = new_lasting(like, (SMALLEST,)), new_lasting(like, (2, SMALLEST))
        few = new_lasting(like, (2,))
    after = new_lasting(like, (SMALLEST,))
    filled([first, second, few, after])
    assert len(blocks) == 1 and second.data_ptr() - first.data_ptr() == 2 * SMALLEST
    assert [float(one.amin()) for one in (first, second, few, after)] == [1, 2, 3, 4]
    assert second.shape == (2, SMALLEST) and {first.dtype, second.dtype, after.dtype} == {torch.bfloat16}
