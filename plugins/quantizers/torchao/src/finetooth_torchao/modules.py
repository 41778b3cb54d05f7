"""Linear modules over torchao's tensors.

They are stored and turned back by the library, and multiplied by torch: its own products want kernels that a processor
lacks, and round inputs too where they have them. What a tensor of the library's consists of lies in buffers of plain
numbers, so that copying, saving and moving a model does what it does with any other."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_torchshared.mxfp4 import pairs, singles
from finetooth_torchshared.quantised import RowsApart
from torch import Tensor, nn


@contextmanager
def quiet() -> Iterator[None]:
    """The library says of each compiled part that it is for another machine."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


with quiet():
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup


INT4: Any = vars(torch)["int4"]
"""torch's type of the name, which its stubs lack."""


def _by(config: Any) -> Callable[[Tensor], Any]:
    """What a config of the library's makes of a weight."""

    def make(weight: Tensor) -> Any:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.weight = nn.Parameter(weight, requires_grad=False)
        holder: Any = nn.Sequential(module)
        quantize_(holder, config)
        return holder[0].weight.data

    return make


def _nvfp4(weight: Tensor) -> Any:
    return NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=per_tensor_amax_to_scale(weight.abs().amax()))


def library_tensor(weight: Tensor, form: str, group: int) -> Any:
    """A weight as the library holds it.

    Args:
        weight: (outputs, inputs) float32.
        form: `int8`, `int4`, `fp8`, `mxfp8`, `nvfp4`.
        group: of `int4`.
    """
    makers: Mapping[str, Callable[[Tensor], Any]] = {
        "int8": _by(Int8WeightOnlyConfig()),
        "int4": _by(IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(group or 32))),
        "fp8": _by(Float8WeightOnlyConfig()),
        "mxfp8": lambda tensor: MXTensor.to_mx(tensor, torch.float8_e4m3fn, 32),
        "nvfp4": _nvfp4,
    }
    return makers[form](weight)


class TorchaoLinear(RowsApart):
    """A module whose weight is a tensor of torchao's.

    Args:
        module: whose weight it is, in host memory.
        form, group: see `library_tensor`.
    """

    def __init__(self, module: nn.Linear, form: str, group: int = 0) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        with quiet():
            made = library_tensor(module.weight.detach().float().contiguous(), form, group)
        self._kind = type(made)
        names, self._about = made.__tensor_flatten__()
        self._halves = form == "int4"
        self._dtypes = {name: getattr(made, name).dtype for name in names}
        for name in names:
            part = getattr(made, name)
            if name == "qdata" and self._halves:
                part = pairs(part + 8)
            # 8-bit floats as bytes: a model that is turned into another precision leaves those alone
            floating = part.is_floating_point() and part.element_size() == 1
            self.register_buffer(name, part.view(torch.uint8) if floating else part)

    def tensor(self, first: int = 0, last: int | None = None) -> Any:
        """The library's, of all outputs or of these. A part with a row for each has none of the others."""
        parts = {}
        for name, dtype in self._dtypes.items():
            part: Tensor = getattr(self, name)
            if part.dim() and len(part) == self.out_features:
                part = part[first:last]
            if name == "qdata" and self._halves:
                part = singles(part).to(torch.int8) - 8
            parts[name] = part.view(dtype) if part.dtype == torch.uint8 and dtype != torch.uint8 else part.to(dtype)
        return self._kind.__tensor_unflatten__(parts, self._about, None, None)

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        numbers: Tensor = self.tensor(first, last).dequantize()
        return numbers.to(dtype)
