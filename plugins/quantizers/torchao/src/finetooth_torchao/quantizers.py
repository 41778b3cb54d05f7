"""What the quantizers take and what they say of it. torch and torchao are imported when a module is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from finetooth_hooks import Context, Options, QuantizerBase
from finetooth_hooks.protocols import Stored

ROW = 1024
"""Inputs of a row as counted for a scale's share of a weight, which no option says."""
MX, NV = 32, 16
"""Weights that share a scale."""


class StoringOptions(Options):
    """What all have."""

    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Modules that stay as they are, by names that end their paths: `[down_proj]`."""


class Int4Options(StoringOptions):
    """Options of `torchao_int4`."""

    group: Literal[32, 64, 128] = 32
    """Number of consecutive weights of an output that share a scale."""


class Torchao(QuantizerBase):
    """`protocols.Quantizer` of all formats here.

    Args:
        stored: what it makes of a weight.
        make: the module for one of `torch.nn.Linear`, in host memory.
        block: what the inputs of a module must be whole times of.
        skip: ends of paths that stay as they are.
    """

    def __init__(self, stored: Stored, make: Callable[[Any], Any], block: int, skip: list[str]) -> None:
        self.stored, self._make, self._block, self.skip = stored, make, block, tuple(skip)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """See `protocols.Quantizer`; inputs that blocks do not fill stay as they are."""
        return shape[1] % self._block == 0 and not (self.skip and path.endswith(self.skip))

    def linear(self, module: Any, *, device: str) -> Any:
        """See `protocols.Quantizer`."""
        return self._make(module).to(device)


def build_int8(options: StoringOptions, context: Context) -> Torchao:
    """torchao's `Int8WeightOnlyConfig`."""
    return _built("int8", Stored("torchao int8 by row", 1 + 4 / ROW), 1, options)


def build_int4(options: Int4Options, context: Context) -> Torchao:
    """torchao's `IntxWeightOnlyConfig` of int4, whose tensors on a processor hold a byte a weight: here two codes are
    in one. Its `Int4WeightOnlyConfig` wants CUDA or a library of kernels, and stores the same levels."""
    stored = Stored(f"torchao int4 by groups of {options.group}", 0.5 + 5 / options.group)
    return _built("int4", stored, options.group, options, group=options.group)


def build_fp8(options: StoringOptions, context: Context) -> Torchao:
    """torchao's `Float8WeightOnlyConfig`. Products with inputs in 8 bits want compute capability 8.9."""
    return _built("fp8", Stored("torchao fp8 by row", 1 + 4 / ROW), 1, options)


def build_mxfp8(options: StoringOptions, context: Context) -> Torchao:
    """MXFP8 of the OCP Microscaling Formats (MX) Specification, version 1.0."""
    return _built("mxfp8", Stored("mxfp8", 1 + 1 / MX), MX, options)


def build_nvfp4(options: StoringOptions, context: Context) -> Torchao:
    """NVFP4: E2M1 with a scale in E4M3 for 16 weights, and one in fp32 for all."""
    return _built("nvfp4", Stored("nvfp4", 0.5 + 1 / NV), NV, options)


def _built(form: str, stored: Stored, block: int, options: StoringOptions, group: int = 0) -> Torchao:
    from finetooth_torchao.modules import TorchaoLinear

    return Torchao(stored, lambda module: TorchaoLinear(module, form, group), block, options.skip)
