"""The outer optimizer, and how pseudo-gradients are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from finetooth_diloco.options import PseudoGradient
from finetooth_diloco.traffic import BLOCK

DTYPES: Mapping[PseudoGradient, torch.dtype] = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip

LARGEST: Mapping[PseudoGradient, int] = {"int8": 127, "int4": 7}
"""The largest number of each integer type; the smallest is its negative."""


@dataclass(frozen=True)
class Piece:
    """Numbers of one weight, from `start` to `stop` of it flat."""

    name: str
    start: int
    stop: int

    def of(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(stop - start,) of it; a view where the weight is contiguous."""
        return arrays[self.name].reshape(-1)[self.start : self.stop]


class OuterOptimizer:
    """SGD with Nesterov's momentum over pseudo-gradients (arXiv:2311.08105, algorithm 1, lines 12 to 14).

    Attributes:
        anchor: the weights that all islands began the round with, by name, in float32.
        momentum: of the outer optimizer, likewise.

    Args:
        weights: what trains, by name; copied.
    """

    def __init__(self, weights: Mapping[str, Tensor], rate: float, momentum: float) -> None:
        self._rate, self._factor = rate, momentum
        self.anchor = {
            name: weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            for name, weight in weights.items()
        }
        self.momentum = {name: torch.zeros_like(weight) for name, weight in self.anchor.items()}

    def fragment(self, number: int, fragments: int) -> list[Piece]:
        """Where one of so many parts of equal size lies, in the order of the anchor."""
        total = self.size
        first, last, at = number * total // fragments, (number + 1) * total // fragments, 0
        pieces = []
        for name, anchor in self.anchor.items():
            start, stop = max(first - at, 0), min(last - at, anchor.numel())
            at += anchor.numel()
            if start < stop:
                pieces.append(Piece(name, start, stop))
        return pieces

    @property
    def size(self) -> int:
        """Numbers that train."""
        return sum(anchor.numel() for anchor in self.anchor.values())

    def is_whole(self, pieces: Sequence[Piece]) -> bool:
        """Whether they are everything that trains."""
        return sum(piece.stop - piece.start for piece in pieces) == self.size

    def pseudo_gradient(self, weights: Mapping[str, Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
        """How far an island has moved: the anchor minus its weights, each piece flat."""
        return [piece.of(self.anchor) - piece.of(weights).detach().to(torch.float32) for piece in pieces]

    def step(self, gradient: Sequence[Tensor], pieces: Sequence[Piece]) -> None:
        """Move the anchor by the mean pseudo-gradient of all islands."""
        for piece, mean in zip(pieces, gradient, strict=True):
            momentum = piece.of(self.momentum).mul_(self._factor).add_(mean)
            piece.of(self.anchor).sub_(mean + self._factor * momentum, alpha=self._rate)

    def mixed(self, weights: Mapping[str, Tensor], pieces: Sequence[Piece], share: float) -> dict[str, Tensor]:
        """An island's weights, with the anchor's in the pieces, of which `share` stays the island's own."""
        own = {name: weight.detach().to(torch.float32, copy=True).contiguous() for name, weight in weights.items()}
        for piece in pieces:
            piece.of(own).mul_(share).add_(piece.of(self.anchor), alpha=1 - share)
        return own


class Line(Protocol):
    """What an exchange needs of a line to the other islands."""

    @property
    def world(self) -> int: ...

    def sum(self, arrays: Sequence[Tensor]) -> list[Tensor]: ...

    def gather(self, value: Any) -> list[Any]: ...


class Exchange:
    """Takes the mean of what all islands give.

    Attributes:
        line: to one rank of each other island.
        residual: (N,) what rounding to integers took from this island's last pseudo-gradients, of all that trains;
            None before the first.
        sent: bytes given to the other islands so far.

    Args:
        dtype: what is sent.
        size: numbers that train, N.
    """

    def __init__(self, line: Line, dtype: PseudoGradient, size: int) -> None:
        self.line, self._dtype, self._size = line, dtype, size
        self.residual: Tensor | None = None
        self.sent = 0

    def mean(self, arrays: Sequence[Tensor], first: int = 0) -> list[Tensor]:
        """In float32, the same bits at every island.

        Args:
            arrays: in float32, of the same shapes at every island.
            first: where they begin in the row of all that trains.
        """
        if self._dtype in LARGEST:
            return self._mean_of_rounded(arrays, first)
        rounded = [array.to(DTYPES[self._dtype]) for array in arrays]
        self.sent += sum(array.nbytes for array in rounded)
        return [total.to(torch.float32) / self.line.world for total in self.line.sum(rounded)]

    def _mean_of_rounded(self, arrays: Sequence[Tensor], first: int) -> list[Tensor]:
        """Each island rounds what it has to send and what the last rounding took from it (Seide et al., 2014)."""
        flat = torch.cat([array.reshape(-1) for array in arrays])
        if self.residual is None:
            self.residual = flat.new_zeros(self._size)
        lost, largest = self.residual[first : first + len(flat)], LARGEST[self._dtype]
        flat += lost
        numbers, scales = rounded(flat, largest)
        lost.copy_(flat - restored(numbers, scales))
        given = packed(numbers) if self._dtype == "int4" else numbers
        self.sent += given.nbytes + scales.nbytes
        total = torch.zeros_like(flat)
        for other, of_other in self.line.gather((given.cpu().numpy(), scales.cpu().numpy())):
            taken = torch.from_numpy(other).to(flat.device)
            if self._dtype == "int4":
                taken = unpacked(taken, len(flat))
            total += restored(taken, torch.from_numpy(of_other).to(flat.device))
        parts = torch.split(total / self.line.world, [array.numel() for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def rounded(flat: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """(N,) float32 -> (N,) int8 and a float32 scale for every `BLOCK` numbers: the largest of a block is `largest`."""
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1) / largest
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    numbers = torch.round(blocks / divisors[:, None]).clamp_(-largest, largest).to(torch.int8)
    return numbers.view(-1)[: len(flat)], scales


def restored(numbers: Tensor, scales: Tensor) -> Tensor:
    """What `rounded` rounded."""
    return numbers.to(torch.float32) * scales.repeat_interleave(BLOCK)[: len(numbers)]


def packed(numbers: Tensor) -> Tensor:
    """(N,) int8 from -7 to 7 -> (N / 2,) uint8, rounded up: two in a byte, the first in its lower half."""
    halves = torch.nn.functional.pad(numbers + 8, (0, len(numbers) % 2)).to(torch.uint8).view(-1, 2)
    return halves[:, 0] | halves[:, 1] << 4


def unpacked(halves: Tensor, length: int) -> Tensor:
    """What `packed` packed."""
    return (torch.stack([halves & 15, halves >> 4], dim=1).view(-1)[:length]).to(torch.int8) - 8


def files_of(folder: Path) -> dict[str, Tensor]:
    """The content of every file in a folder, by its path there."""
    return {
        str(file.relative_to(folder)): torch.from_numpy(np.frombuffer(file.read_bytes(), dtype=np.uint8).copy())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write_files(contents: Mapping[str, Tensor], folder: Path) -> None:
    """Write what `files_of` read."""
    for name, content in contents.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.numpy().tobytes())
