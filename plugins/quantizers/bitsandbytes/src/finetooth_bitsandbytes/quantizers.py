"""What the quantizers take and what they say of it. torch and bitsandbytes are imported when a module is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from finetooth_hooks import Context, Options, QuantizerBase
from finetooth_hooks.protocols import Stored

OFFSETS = 256
"""Blocks whose scales share a scale where scales are quantised themselves."""
ROW = 1024
"""Inputs of a row as counted for a scale's share of a weight, which no option says."""


class StoringOptions(Options):
    """What all have."""

    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Modules that stay as they are, by names that end their paths: `[down_proj]`."""


class FourBitOptions(StoringOptions):
    """Options of `nf4` and `fp4`."""

    block: Literal[64, 128, 256, 512] = 64
    """Number of weights that share a scale."""
    double: bool = True
    """Whether to quantise the scales too, to 8 bits (QLoRA's double quantisation). It saves 0.37 bits per weight."""


class Int8Options(StoringOptions):
    """Options of `bnb_int8`."""


class Bitsandbytes(QuantizerBase):
    """`protocols.Quantizer` of all formats here.

    Args:
        stored: what it makes of a weight.
        make: the module for one of `torch.nn.Linear`, in host memory.
        skip: ends of paths that stay as they are.
        on_gpus: the library's own functions read the weight back there.
    """

    def __init__(
        self, stored: Stored, make: Callable[[Any], Any], skip: list[str], *, on_gpus: bool = False
    ) -> None:  # fmt: skip
        self.stored, self._make, self.skip, self._on_gpus = stored, make, tuple(skip), on_gpus

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """See `protocols.Quantizer`."""
        del shape
        return not path.endswith(self.skip) if self.skip else True

    def linear(self, module: Any, *, device: str) -> Any:
        """See `protocols.Quantizer`.

        Raises:
            PlanError: the library is not there for the device.
        """
        from finetooth_torchshared.build import check_bitsandbytes

        if self._on_gpus:
            check_bitsandbytes(device, "quantization", "int4")
        return self._make(module).to(device)


def build_nf4(options: FourBitOptions, context: Context) -> Bitsandbytes:
    """NormalFloat of 4 bits (Dettmers et al., 2023, arXiv:2305.14314)."""
    return _four_bits("nf4", options)


def build_fp4(options: FourBitOptions, context: Context) -> Bitsandbytes:
    """The library's floating point of 4 bits, three of them exponent and mantissa."""
    return _four_bits("fp4", options)


def build_int8(options: Int8Options) -> Bitsandbytes:
    """Weights as LLM.int8() stores them (Dettmers et al., 2022, arXiv:2208.07339); what is multiplied with them stays
    in the precision of the run."""
    from finetooth_bitsandbytes.modules import Int8Linear

    return Bitsandbytes(Stored("bitsandbytes int8 by row", 1 + 4 / ROW), Int8Linear, options.skip)


def _four_bits(name: Literal["nf4", "fp4"], options: FourBitOptions) -> Bitsandbytes:
    from finetooth_bitsandbytes.modules import FourBitLinear

    scale = 1 + 4 / OFFSETS if options.double else 4
    named = f"{name} by blocks of {options.block}{', doubly quantised' if options.double else ''}"

    def make(module: Any) -> Any:
        return FourBitLinear(module, name, options.block, double=options.double)

    return Bitsandbytes(Stored(named, 0.5 + scale / options.block), make, options.skip, on_gpus=True)
