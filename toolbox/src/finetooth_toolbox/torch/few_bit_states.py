"""States of optimizers in few bits: numbers of a block share a scale, and each is the nearest of a few levels."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from finetooth_toolbox.torch.by_parameter import Settings


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


class FewBits:
    """Keeps tensors of numbers in a state, and gives them back.

    Args:
        levels: (16,) or (256,) numbers from -1 or 0 to 1, ascending.
        block: numbers that share a scale, the largest size among them.
        smallest: tensors of fewer numbers are kept in fp32.
    """

    def __init__(self, levels: Tensor, *, block: int, smallest: int = 4096) -> None:
        self._levels, self._block, self._smallest = levels, block, smallest
        self._between = (levels[1:] + levels[:-1]) / 2
        self._packs = len(levels) == 16  # two to a byte

    def read(self, state: Settings, name: str, like: Tensor) -> Tensor:
        """The numbers kept under a name, in fp32 and in the shape of a tensor; zeros if none are."""
        if name not in state:
            return torch.zeros_like(like, dtype=torch.float32)
        kept: Tensor = state[name]
        if f"{name}_scale" not in state:
            return kept.clone()
        if self._packs:
            kept = torch.stack([kept & 15, kept >> 4], 1).flatten()
        numbers = self._levels.to(kept.device)[kept.long()].view(-1, self._block)
        numbers *= state[f"{name}_scale"].unsqueeze(1)
        return numbers.flatten()[: like.numel()].view(like.shape)

    def write(self, state: Settings, name: str, numbers: Tensor) -> None:
        """Keep numbers under a name: codes there, scales under `NAME_scale`."""
        if numbers.numel() < self._smallest:
            state[name] = numbers
            return
        flat = torch.nn.functional.pad(numbers.flatten(), (0, -numbers.numel() % self._block)).view(-1, self._block)
        scale = flat.abs().amax(1)
        ratio = flat / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        codes = torch.bucketize(ratio, self._between.to(ratio.device)).to(torch.uint8).flatten()
        state[name] = codes[::2] | codes[1::2] << 4 if self._packs else codes
        state[f"{name}_scale"] = scale

    def bytes_of(self, numbers: int) -> float:
        """What a tensor of so many numbers takes."""
        if numbers < self._smallest:
            return 4.0 * numbers
        blocks = -(-numbers // self._block)
        return blocks * (self._block * (0.5 if self._packs else 1.0) + 4)


__all__ = ["FewBits", "dynamic_levels", "even_levels"]
