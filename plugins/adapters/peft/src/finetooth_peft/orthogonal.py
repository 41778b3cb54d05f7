"""OFT (Qiu et al., 2023, arXiv:2306.07280; inputs rotated as in Qiu et al., 2025, arXiv:2506.19847) and BOFT (Liu et
al., 2024, arXiv:2311.06243): y = W R x, where R is orthogonal and block-diagonal.

A block of OFT is the Cayley transform of a skew-symmetric matrix, (I + Q) (I - Q)^-1, with the inverse from the first
terms of its Neumann series, or exact. BOFT's is exact, and each output is scaled by a trained factor. Its products of
several such matrices, mixed like butterflies, need a compiler of CUDA in peft; finetooth computes them in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from finetooth_hooks import Context, RecipeError
from pydantic import Field

from finetooth_peft.adapter import PeftAdapter, TargetOptions, begins_with


class OftOptions(TargetOptions):
    """Options of `oft`."""

    block_size: int = Field(default=32, ge=2, le=1024)
    """Number of inputs rotated together; it must divide the inputs of every target. Larger blocks are more expressive
    and have more parameters: block_size * (block_size - 1) / 2 each."""
    share_blocks: bool = False
    """Whether all blocks of a module are the same: far fewer parameters."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of blocks that rotate nothing, during training."""
    exact: bool = False
    """Whether to solve a system for each block, so that it is orthogonal to the last bit, instead of five terms of a
    series. Slower."""


class BoftOptions(TargetOptions):
    """Options of `boft`."""

    block_size: int = Field(default=4, ge=2, le=1024)
    """Number of inputs rotated together; it must divide the inputs of every target."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of blocks that rotate nothing, during training."""


@dataclass(frozen=True)
class OftAdapter(PeftAdapter):
    """OFT: blocks on the inputs."""

    kind: ClassVar[str] = "OFT"

    def added(self, path: str, inputs: int, outputs: int) -> int:
        blocks = _blocks(self.options.block_size, path, inputs)
        size = int(self.options.block_size)
        return (1 if self.options.share_blocks else blocks) * size * (size - 1) // 2

    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """The rotated input."""
        return True, 0

    def settings(self) -> Mapping[str, Any]:
        return {
            "oft_block_size": self.options.block_size,
            "r": 0,
            "block_share": self.options.share_blocks,
            "module_dropout": self.options.dropout,
            "use_cayley_neumann": not self.options.exact,
            "num_cayley_neumann_terms": 5,
            "coft": False,
        }


@dataclass(frozen=True)
class BoftAdapter(PeftAdapter):
    """BOFT: blocks on the inputs, factors on the outputs."""

    kind: ClassVar[str] = "BOFT"

    def added(self, path: str, inputs: int, outputs: int) -> int:
        return _blocks(self.options.block_size, path, inputs) * int(self.options.block_size) ** 2 + outputs

    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """The rotated input, and the outputs before their factors."""
        return True, outputs

    def settings(self) -> Mapping[str, Any]:
        return {
            "boft_block_size": self.options.block_size,
            "boft_block_num": 0,
            "boft_n_butterfly_factor": 1,
            "boft_dropout": self.options.dropout,
        }

    def first_number(self, name: str) -> float | None:
        return 1.0 if name.startswith("boft_s") else 0.0


def _blocks(size: int, path: str, inputs: int) -> int:
    if inputs % size:
        fitting = [other for other in range(2, inputs + 1) if inputs % other == 0]
        nearest = min(fitting, key=lambda other: (abs(other - size), other))
        raise RecipeError(
            "adapter.block_size",
            f"{size} does not divide the {inputs} inputs of {path}",
            action=f"set it to {nearest}, or leave that module out of adapter.targets",
        )
    return inputs // size


def build_oft(options: OftOptions, context: Context) -> OftAdapter:
    """Builder of the adapter `oft`."""
    made = OftAdapter(options)
    return replace(made, begins=begins_with(options, context, made))


def build_boft(options: BoftOptions, context: Context) -> BoftAdapter:
    """Builder of the adapter `boft`."""
    made = BoftAdapter(options)
    return replace(made, begins=begins_with(options, context, made))
