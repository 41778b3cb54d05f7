"""Replays of compiled kernels: the same numbers as computing anew, and none where anything else computes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from finetooth_kernels import capture as module
from finetooth_kernels import memory
from finetooth_kernels.capture import NOTED, WORTH_CAPTURING, Repeated, capture
from finetooth_kernels.memory import SMALLEST, Arena, Blocks, new_empty, private
from finetooth_native import build as native
from finetooth_native.few_rows import FewRows
from finetooth_native.library import _kernel
from finetooth_native.operations import gated, residual_norm
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled")


class Layer:
    """The feed-forward half of a decoder layer."""

    def __init__(self, dtype: torch.dtype, width: int = 32, inner: int = 96, seed: int = 1) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.width, self.dtype = width, dtype
        gate_up, down = self.numbers(2 * inner, width).to(dtype), self.numbers(width, inner).to(dtype)
        packed = FewRows.pack(gate_up), FewRows.pack(down)
        assert packed[0] is not None and packed[1] is not None
        self.gate_up, self.down = packed
        self.norm = self.numbers(width).to(dtype)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw)

    def __call__(self, h_nd: Tensor) -> Tensor:
        h_nd, normed = residual_norm(h_nd, self.norm, 1e-5)
        return self.down(gated(self.gate_up(normed)), base_no=h_nd)


def through(layers: list[Layer], h_nd: Tensor) -> Tensor:
    for layer in layers:
        h_nd = layer(h_nd)
    return h_nd


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [96, 3 * SMALLEST // 32], ids=["small tensors", "large tensors"])
def test_a_replay_computes_the_same_from_other_numbers(dtype: torch.dtype, inner: int) -> None:
    layers = [Layer(dtype, inner=inner, seed=seed) for seed in range(4)]
    h_nd = layers[0].numbers(5, 32)
    with torch.no_grad():
        result, captured = capture(lambda: through(layers, h_nd))
        assert captured is not None and torch.equal(result, through(layers, h_nd.clone()))
        for _ in range(3):
            h_nd.copy_(layers[0].numbers(5, 32))
            kept, expected = h_nd.clone(), through(layers, h_nd.clone())
            others = [new_empty(h_nd, (n, 32)).fill_(7.0) for n in (5, 15, 5 * inner) for _ in range(9)]
            captured()
            assert torch.equal(result, expected) and torch.equal(h_nd, kept)
            assert all(bool((other == 7.0).all()) for other in others), "it writes to memory that others were given"


@pytest.mark.parametrize(
    "also",
    [
        lambda h: h + 1,
        lambda h: h.add_(1),
        lambda h: torch.cat([h[:2], h[2:]]),
        lambda h: h.t().contiguous().t(),
        lambda h: h[: 5 if h[0, 0].item() < 1e9 else 4],
        lambda h: torch.zeros_like(h),
        lambda h: h.to(torch.float64).float(),
        lambda h: torch.randn_like(h),
        lambda h: torch.tensor([[1.0] * 32] * 5),
        lambda h: torch.from_numpy(h.numpy()),
        lambda h: Arena().empty((5, 32), torch.float32),
        lambda h: h.reshape(32, 5).t().reshape(5, 32),
    ],
)
def test_what_torch_computes_itself_is_not_captured(also: Callable[[Tensor], Tensor]) -> None:
    layer = Layer(torch.float32)
    h_nd = layer.numbers(5, 32)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            result, captured = capture(lambda: layer(also(layer(h_nd)).view(5, 32)))
            assert captured is None and result.shape == h_nd.shape
    with torch.no_grad():
        assert capture(lambda: layer(layer(h_nd)[:, :32].view(5, 4, 8).flatten(1)))[1] is not None  # only views


def test_without_memory_of_its_own_there_is_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> None:
        raise OSError

    layer = Layer(torch.float32)
    h_nd = layer.numbers(5, 32)
    monkeypatch.setattr(memory, "_mapped", refuse)
    with torch.no_grad():
        result, captured = capture(lambda: layer(h_nd))
        assert captured is None and torch.equal(result, layer(h_nd))


def test_a_capture_may_be_profiled() -> None:
    layer = Layer(torch.float32)
    h_nd = layer.numbers(5, 32)
    with torch.no_grad(), torch.profiler.profile() as profile:
        captured = capture(lambda: layer(h_nd))[1]
        assert captured is not None
        captured()
    assert sum(event.count for event in profile.key_averages() if event.key == "finetooth::gated") == 2


def test_repeated_is_captured_when_it_has_paid_and_made_anew_when_told() -> None:
    layers = [Layer(torch.float32, seed=seed) for seed in range(2)]
    made: list[int] = []

    def compute(h_nd: Tensor) -> Tensor:
        made.append(len(h_nd))
        return through(layers, h_nd)

    repeated = Repeated()
    with torch.no_grad():
        for rows in (5, 3):
            for _ in range(WORTH_CAPTURING + 4):
                h_nd = layers[0].numbers(rows, 32)
                assert torch.equal(repeated(compute, h_nd), through(layers, h_nd))
            repeated.forget()
        assert made == [5] * (WORTH_CAPTURING + 1) + [3] * (WORTH_CAPTURING + 1)

        repeated(compute, layers[0].numbers(2, 32))
        assert repeated(compute, layers[0].numbers(4, 32)).shape == (4, 32), "another shape is not the same again"


def test_what_cannot_be_captured_is_tried_ever_less(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(torch.float32)
    tried: list[int] = []
    calls = 0
    monkeypatch.setattr(module, "capture", lambda compute: (tried.append(calls), capture(compute))[1])
    repeated = Repeated()
    with torch.no_grad():
        for calls in range(40):  # noqa: B007 - `capture` reads it
            h_nd = layer.numbers(5, 32)
            assert torch.equal(repeated(lambda h_nd: layer(h_nd) * 2, h_nd), layer(h_nd) * 2)
        assert tried == [4, 13, 30]
        repeated.forget()
        for calls in range(40, 75):  # noqa: B007
            h_nd = layer.numbers(5, 32)
            assert torch.equal(repeated(layer, h_nd), layer(h_nd))
        assert tried == [4, 13, 30, 72], "what is captured now could not be before"


def test_a_capture_notes_its_own_thread_and_ends_with_what_is_raised() -> None:
    layer = Layer(torch.float32)
    h_nd = layer.numbers(5, 32)
    seen: list[object] = []

    def compute() -> Tensor:
        result = layer(h_nd)

        def other() -> None:
            seen.extend([NOTED.calls, new_empty(h_nd, (4, 4)).untyped_storage().nbytes()])

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return result

    with torch.no_grad():
        _, captured = capture(compute)
        assert captured is not None and seen == [None, 64]
        with pytest.raises(ZeroDivisionError):
            capture(lambda: h_nd.view(1 // 0))
    assert NOTED.calls is None and new_empty(h_nd, (4, 4)).untyped_storage().nbytes() == 64


def test_a_kernel_that_fails_says_so_in_a_replay_too() -> None:
    failing = [0, 1]
    kernel = _kernel("finetooth::test", lambda: failing.pop(0), "no memory to work in")
    h_nd = torch.zeros(3)

    def compute() -> Tensor:
        kernel()
        return h_nd

    _, captured = capture(compute)
    assert captured is not None
    with pytest.raises(MemoryError, match="no memory to work in"):
        captured()


def test_private_blocks_take_tensors_of_any_size() -> None:
    like, blocks = torch.zeros(1), Blocks()
    with private(blocks):
        small, none = new_empty(like, (2, 3)), new_empty(like, (0, 3))
        large = new_empty(like, (SMALLEST,))
    assert (small.shape, none.shape, large.shape) == ((2, 3), (0, 3), (SMALLEST,)) and len(blocks) == 2
    del small
    with private(blocks):
        again = new_empty(like, (3, 2))
        new_empty(like, (3, 2))  # let go of at once
        new_empty(like, (1, 6))
    assert len(blocks) == 3 and again.shape == (3, 2)
    assert native.library_for(again) is not None, "kernels can read it"
