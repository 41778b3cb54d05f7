"""What the quantizer `gptq` takes and what it says of it. torch is imported when a module is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks import Context, Options, QuantizerBase, RecipeError
from finetooth_hooks.protocols import Stored
from pydantic import Field

SCALE = 3
"""Bytes of a group without its codes: a scale in bf16, and a zero."""


class GptqOptions(Options):
    """Options of `gptq`."""

    bits: Literal[4, 8] = 4
    """Of a weight."""
    group: Literal[32, 64, 128] = 64
    """Consecutive weights of an output that share a scale."""
    rows: int = Field(default=64, ge=1)
    """How many of the first rows of data.train it is calibrated with."""
    ordered: bool = True
    """Round the inputs that matter most first."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the mean that is added to the diagonal of what is inverted; more where that fails."""
    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Names that end the paths of modules which stay as they are: `[down_proj]`."""


class Gptq(QuantizerBase):
    """`protocols.Quantizer`, calibrated with rows of the training data."""

    capabilities = frozenset({"calibrate"})

    def __init__(self, options: GptqOptions, context: Context) -> None:
        self._options, self._context, self.skip = options, context, tuple(options.skip)
        named = f"gptq of {options.bits} bits by groups of {options.group}"
        self.stored = Stored(named, options.bits / 8 + SCALE / options.group)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """See `protocols.Quantizer`."""
        del shape
        return not path.endswith(self.skip) if self.skip else True

    def linear(self, module: Any, *, device: str) -> Any:
        """Without anything to calibrate with: every weight by itself."""
        from finetooth_torchshared.grouped_linear import GroupedLinear

        from finetooth_gptq.rounding import nearest

        made = nearest(module.weight, self._options.group, self._options.bits)
        return GroupedLinear(made, module.bias).to(device)

    def calibrate(self, model: Any, *, device: str) -> int:
        """See `protocols.Quantizer`.

        Raises:
            RecipeError: the recipe has no training data of rows that are tokens, or a Hessian cannot be inverted.
        """
        import torch
        from finetooth_rendering.calibration import calibration_rows
        from finetooth_torchshared.grouped_linear import GroupedLinear
        from finetooth_torchshared.stored_experts import as_linear

        from finetooth_gptq.calibration import calibrate
        from finetooth_gptq.rounding import joined, rounded

        options = self._options

        def made(path: str, weight: Any, hessian: Any) -> Any:
            try:
                return rounded(
                    weight, hessian, options.group, options.bits, damping=options.damping, ordered=options.ordered
                )
            except RuntimeError as error:  # torch.linalg.LinAlgError is one
                raise RecipeError(
                    "quantization.damping",
                    f"what {path} reads cannot be inverted with {options.damping:g} of damping",
                    action="set more, or more quantization.rows",
                ) from error

        def store(path: str, module: Any, hessian: Any) -> Any:
            return GroupedLinear(made(path, module.weight, hessian), module.bias).to(device)

        def store_experts(path: str, weight: Any, hessians: Mapping[int, Any]) -> Any:
            if not hessians:
                self._context.note(
                    "quantization: experts of this model are rounded to the nearest, since its code does not multiply "
                    "as linear modules do",
                    topic="gptq-experts",
                )
                return self.linear(as_linear(weight), device=device)
            nothing = torch.zeros(weight.shape[2], weight.shape[2])  # of an expert that no row reached
            each = [made(path, part, hessians.get(expert, nothing)) for expert, part in enumerate(weight)]
            return GroupedLinear(joined(each)).to(device)

        rows = calibration_rows(
            self._context, options.rows, "quantization", "gptq", instead="choose quantization: int4 or nf4"
        )
        return calibrate(model, self._context.facts.layer_path, rows, self.takes, store, store_experts)


def build(options: GptqOptions, context: Context) -> Gptq:
    """GPTQ (Frantar et al., 2022, arXiv:2210.17323)."""
    return Gptq(options, context)
