"""States of optimizers in few bits: numbers of a block share a scale, and each is the nearest of a few levels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from finetooth_torchshared.by_parameter import Settings


@cache
def dynamic_levels(bits: int, *, signed: bool) -> Tensor:
    """Levels whose exponents and fractions share the bits: the smaller a number, the fewer bits of it are left
    (Dettmers, 2015, arXiv:1511.04561; Dettmers et al., 2022, arXiv:2110.02861, section 2.2, where for numbers without a
    sign its bit belongs to the fraction).

    Returns:
        (2 ** bits,) float32, ascending, from -1 or 0 to 1.
    """
    exponents = bits - 1
    levels = [0.0, 1.0]
    for i in range(exponents):
        edges = torch.linspace(0.1, 1.0, 2 ** (i if signed else i + 1) + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - exponents + 1)).tolist()
        levels += means + ([-mean for mean in means] if signed else [])
    return torch.tensor(sorted(levels), dtype=torch.float64).float()


@cache
def even_levels(bits: int) -> Tensor:
    """Levels at equal distances without zero, for numbers that are divided by (Li et al., 2023, arXiv:2309.01507,
    section 4.1).

    Returns:
        (2 ** bits,) float32, ascending, from 2 ** -bits to 1.
    """
    return torch.arange(1, 2**bits + 1, dtype=torch.float64).div(2**bits).float()


PIECE = 2**20
"""Numbers that are turned into codes, or back, at once."""


class FewBits:
    """Keeps tensors of numbers in a state, and gives them back.

    Args:
        levels: (16,) or up to (256,) numbers from -1 or 0 to 1, ascending.
        block: numbers that share a scale, the largest size among them.
        smallest: tensors of fewer numbers are kept in fp32.
        between: what parts each level from the next; None: the middle.
        scales: the type they are kept in; None: that of the numbers.
    """

    def __init__(
        self, levels: Tensor, *, block: int, smallest: int = 4096, between: Tensor | None = None,
        scales: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self._levels, self._block, self._smallest, self._scales = levels, block, smallest, scales
        self._between = (levels[1:] + levels[:-1]) / 2 if between is None else between
        self._packs = len(levels) == 16  # two to a byte

    def read(self, state: Settings, name: str, like: Tensor) -> Tensor:
        """The numbers kept under a name, in fp32 and in the shape of a tensor; zeros if none are."""
        if name not in state:
            return torch.zeros_like(like, dtype=torch.float32)
        stored: Tensor = state[name]
        if f"{name}_scale" not in state:
            return stored.clone()
        restored = torch.empty(like.shape, dtype=torch.float32, device=stored.device)
        levels, whole = self._levels.to(stored.device), restored.view(-1)
        for blocks in self._pieces(len(state[f"{name}_scale"])):
            codes = stored[self._codes(blocks)]
            if self._packs:
                codes = torch.stack([codes & 15, codes >> 4], 1).flatten()
            numbers = levels[codes.int()].view(-1, self._block)
            numbers *= state[f"{name}_scale"][blocks].unsqueeze(1)
            piece = whole[self._numbers(blocks)]
            piece.copy_(numbers.view(-1)[: len(piece)])
        return restored

    def write(self, state: Settings, name: str, numbers: Tensor) -> None:
        """Keep numbers under a name: codes there, scales under `NAME_scale`."""
        if numbers.numel() < self._smallest:
            state[name] = numbers
            return
        whole, blocks_in_all = numbers.reshape(-1), -(-numbers.numel() // self._block)
        between, device = self._between.to(whole.device), whole.device
        stored = torch.empty(blocks_in_all * self._block // (2 if self._packs else 1), dtype=torch.uint8, device=device)
        scales = torch.empty(blocks_in_all, dtype=self._scales or whole.dtype, device=device)
        for blocks in self._pieces(blocks_in_all):
            piece = whole[self._numbers(blocks)]
            flat = torch.nn.functional.pad(piece, (0, -len(piece) % self._block)).view(-1, self._block)
            scale = flat.abs().amax(1)
            ratio = flat / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
            codes = torch.bucketize(ratio, between, out_int32=True).to(torch.uint8).flatten()
            stored[self._codes(blocks)] = codes[::2] | codes[1::2] << 4 if self._packs else codes
            scales[blocks] = scale
        state[name], state[f"{name}_scale"] = stored, scales

    def _pieces(self, blocks: int) -> Iterator[slice]:
        """Blocks that are turned at once: all of an embedding would take several times what is kept of it."""
        at_once = PIECE // self._block
        return (slice(start, min(start + at_once, blocks)) for start in range(0, blocks, at_once))

    def _numbers(self, blocks: slice) -> slice:
        return slice(blocks.start * self._block, blocks.stop * self._block)

    def _codes(self, blocks: slice) -> slice:
        """Where their codes are."""
        places, share = self._numbers(blocks), 2 if self._packs else 1
        return slice(places.start // share, places.stop // share)

    def bytes_of(self, numbers: int) -> float:
        """Bytes of a tensor with this count of numbers."""
        if numbers < self._smallest:
            return 4.0 * numbers
        blocks = -(-numbers // self._block)
        return blocks * (self._block * (0.5 if self._packs else 1.0) + (self._scales or torch.float32).itemsize)


__all__ = ["FewBits", "dynamic_levels", "even_levels"]
