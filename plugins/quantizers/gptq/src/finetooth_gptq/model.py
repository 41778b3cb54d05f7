"""A whole model by GPTQ: as the quantizer calls it with a recipe, and as a function of a model and rows of ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from finetooth_hooks import RecipeError
from finetooth_torchshared.grouped_linear import Bits, Grouped, GroupedLinear
from finetooth_torchshared.stored_experts import as_linear
from torch import Tensor, nn

from finetooth_gptq.calibration import calibrate
from finetooth_gptq.rounding import joined, nearest, rounded

__all__ = ["Rounding", "quantize_model_gptq", "store_layers"]


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded; see `quantizer.GptqOptions`."""

    bits: Bits
    group: int
    damping: float
    ordered: bool
    symmetric: bool = False

    def nearest(self, module: nn.Linear, device: str) -> GroupedLinear:
        """Every weight by itself, without anything to calibrate with."""
        return GroupedLinear(nearest(module.weight, self.group, self.bits), module.bias).to(device)

    def rounded(self, path: str, weight: Tensor, hessian: Tensor) -> Grouped:
        """Rounds a weight with GPTQ and the Hessian of its inputs.

        Raises:
            RecipeError: the Hessian cannot be inverted.
        """
        try:
            return rounded(
                weight, hessian, self.group, self.bits, damping=self.damping, ordered=self.ordered,
                symmetric=self.symmetric,
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch.linalg.LinAlgError is one
            raise RecipeError(
                "quantization.damping",
                f"what {path} reads cannot be inverted with {self.damping:g} of damping",
                action="set more, or more quantization.rows",
            ) from error


def store_layers(
    model: nn.Module, layers: str, rows: Sequence[Sequence[int]], rounding: Rounding, takes: Callable[..., bool],
    note: Callable[[str], None], device: str,
) -> int:  # fmt: skip
    """Store the linear modules and experts of a model's layers.

    Args:
        layers: path of the list of decoder layers.
        rows: of token ids.
        takes: whether a module is stored, by its path and shape.
        note: is told what was not done as asked for.
        device: where layers move one by one, are calibrated and stay.

    Returns:
        How many modules and weights of experts were stored.

    Raises:
        RecipeError: a Hessian cannot be inverted.
    """

    def store(path: str, module: nn.Linear, hessian: Tensor) -> nn.Module:
        return GroupedLinear(rounding.rounded(path, module.weight, hessian), module.bias)

    def store_experts(path: str, weight: Tensor, hessians: Mapping[int, Tensor]) -> nn.Module:
        if not hessians:
            note(
                "quantization: experts of this model are rounded to the nearest value, because its code does not "
                "run them as linear modules"
            )
            return rounding.nearest(as_linear(weight), device)
        nothing = weight.new_zeros(weight.shape[2], weight.shape[2]).float()  # of an expert that no row reached
        each = [rounding.rounded(path, part, hessians.get(expert, nothing)) for expert, part in enumerate(weight)]
        return GroupedLinear(joined(each))

    return calibrate(model, layers, rows, takes, store, store_experts, device=device)


def quantize_model_gptq(
    model: nn.Module, bits: Bits = 4, *, rows: Sequence[Sequence[int]], group: int = 64, damping: float = 0.01,
    ordered: bool = True, skip: Sequence[str] = (), layers: str | None = None,
) -> nn.Module:  # fmt: skip
    """Round the linear modules of a causal model's layers so that they compute, on rows of token ids, as nearly as can
    be what they did (Frantar et al., 2022, arXiv:2210.17323). Head and embeddings stay.

    Args:
        model: of transformers, on one device, which computes; changed in place.
        bits: 4 or 8.
        rows: token ids of some texts like those that it will read, each as long as they are.
        group: inputs side by side that share a scale.
        damping: share of the Hessian's mean diagonal that is added to it.
        ordered: round the inputs that matter most first.
        skip: ends of the paths of modules that stay as they are.
        layers: path of the list of decoder layers; None: the list of modules with the most parameters.

    Returns:
        The model, whose layers multiply with what is stored.

    Raises:
        ValueError: naming the argument: no rows, other bits, a model on several devices or without a list of layers, or
            nothing in it to store.
        RecipeError: a Hessian cannot be inverted; more rows or damping help.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: {bits} is neither 4 nor 8")
    if not rows or not all(len(row) for row in rows):
        raise ValueError("rows: GPTQ rounds by what the model reads, so give it some rows of token ids, none empty")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        raise ValueError(f"model: lies on {', '.join(devices)}; move it to one device that holds its weights")
    path = layers if layers is not None else _layers(model)

    def takes(path: str, shape: tuple[int, int]) -> bool:
        del shape
        return not path.endswith(tuple(skip)) if skip else True

    def warn(text: str) -> None:
        warnings.warn(text, stacklevel=2)

    if not store_layers(model, path, rows, Rounding(bits, group, damping, ordered), takes, warn, "".join(devices)):
        raise ValueError(f"model: nothing was stored of {path}; it holds no linear modules, or skip names them all")
    return model


def _layers(model: nn.Module) -> str:
    """Path of the list of modules that has the most parameters; of lists within lists the outer one."""
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            sizes[path] = sum(parameter.numel() for parameter in module.parameters())
    if not sizes:
        raise ValueError("layers: the model holds no list of modules; name the path of its decoder layers")
    return max(sizes, key=lambda path: sizes[path])
