"""Quantizers of MLX: they store the linear weights of decoder layers in MLX's own formats while a model is loaded."""

from __future__ import annotations

from typing import Any, Literal

from finetooth_hooks import Options, QuantizerBase
from finetooth_hooks.protocols import Stored

HEADS = ("lm_head", "embed_out", "output")
"""Path suffixes of language-model heads, which are not quantised."""


class Skipping(Options):
    """Options of `mxfp4`, and of all quantizers."""

    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Modules that are not quantised, by the ends of their paths: `[down_proj]`."""


class GroupOptions(Skipping):
    """Options of `int4` and `int8`."""

    group_size: Literal[32, 64, 128] = 64
    """Number of weights that share a scale and an offset."""


class AffineOptions(GroupOptions):
    """Options of `affine`."""

    bits: Literal[2, 3, 4, 5, 6, 8] = 6
    """Bits per weight."""


class MlxQuantizer(QuantizerBase):
    """`protocols.Quantizer` that makes MLX's quantised modules."""

    def __init__(self, options: Skipping, bits: int, group_size: int, mode: str = "affine") -> None:
        self._bits, self._group_size, self._mode, self.skip = bits, group_size, mode, tuple(options.skip)
        scales = 4 / group_size if mode == "affine" else 1 / group_size
        self.stored = Stored(f"{mode}, {bits} bits in groups of {group_size}", bits / 8 + scales)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """See `protocols.Quantizer`."""
        return not path.endswith((*HEADS, *self.skip)) and shape[1] % self._group_size == 0

    def linear(self, module: Any, *, device: str) -> Any:
        """See `protocols.Quantizer`."""
        import mlx.core as mx

        made = module.to_quantized(group_size=self._group_size, bits=self._bits, mode=self._mode)
        mx.eval(made.parameters())
        return made


def build_int8(options: GroupOptions) -> MlxQuantizer:
    """8 bits, a scale and an offset a group."""
    return MlxQuantizer(options, 8, options.group_size)


def build_int4(options: GroupOptions) -> MlxQuantizer:
    """4 bits, a scale and an offset a group."""
    return MlxQuantizer(options, 4, options.group_size)


def build_affine(options: AffineOptions) -> MlxQuantizer:
    """2 to 8 bits, a scale and an offset a group."""
    return MlxQuantizer(options, options.bits, options.group_size)


def build_mxfp4(options: Skipping) -> MlxQuantizer:
    """The OCP's MXFP4: elements of E2M1, a scale of E8M0 for 32 of them."""
    return MlxQuantizer(options, 4, 32, "mxfp4")
