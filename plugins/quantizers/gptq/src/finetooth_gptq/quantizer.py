"""What the quantizer `gptq` takes and what it says of it. torch is imported when a module is stored."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from finetooth_hooks import Context, Options, QuantizerBase
from finetooth_hooks.protocols import Stored
from pydantic import Field

if TYPE_CHECKING:
    from finetooth_gptq.model import Rounding

SCALE = 3
"""Bytes of a group without its codes: a scale in bf16, and a zero."""


class GptqOptions(Options):
    """Options of `gptq`."""

    bits: Literal[4, 8] = 4
    """Bits per weight."""
    group: Literal[32, 64, 128] = 64
    """Number of consecutive weights of an output that share a scale."""
    rows: int = Field(default=64, ge=1)
    """Number of rows of data.train for calibration, the first ones."""
    ordered: bool = True
    """Whether to round the inputs that matter most first."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to its diagonal before it is inverted. Raise it if that
    fails."""
    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Modules that stay as they are, by names that end their paths: `[down_proj]`."""


class Gptq(QuantizerBase):
    """GPTQ (Frantar et al., 2022, arXiv:2210.17323), calibrated with rows of the training data."""

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
        return self._rounding().nearest(module, device)

    def calibrate(self, model: Any, *, device: str) -> int:
        """See `protocols.Quantizer`.

        Raises:
            RecipeError: the recipe has no training data of rows that are tokens, or a Hessian cannot be inverted.
        """
        from finetooth_rendering.calibration import calibration_rows

        from finetooth_gptq.model import store_layers

        rows = calibration_rows(
            self._context, self._options.rows, "quantization", "gptq", instead="choose quantization: int4 or nf4"
        )
        note = partial(self._context.note, topic="gptq-experts")
        layers = self._context.facts.layer_path
        return store_layers(model, layers, rows, self._rounding(), self.takes, note, device)

    def _rounding(self) -> Rounding:
        from finetooth_gptq.model import Rounding

        options = self._options
        return Rounding(options.bits, options.group, options.damping, options.ordered)
