"""VeRA (Kopiczko et al., 2024, arXiv:2310.11454): y = W x + b * (B (d * (A x))), A and B random and shared by all
modules, vectors b and d trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from finetooth_hooks import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.sizes import shapes
from finetooth_modelfiles.targets import resolve
from pydantic import Field

from finetooth_peft.adapter import PeftAdapter, TargetOptions, begins_with


class VeraOptions(TargetOptions):
    """Options of `vera`."""

    rank: int = Field(default=256, ge=1)
    """Rows of A and columns of B. They do not train, so it may be large: each module trains rank + outputs numbers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A during training."""
    first: float = Field(default=0.1, gt=0)
    """Initial value of the vector d; b starts at zero, so that the model's outputs do not change."""
    projection_seed: int = Field(default=0, ge=0)
    """Seed of A and B."""
    save_projection: bool = True
    """Whether the artifact holds A and B. Without them it is smaller, and loading it draws them again from the seed,
    which gives the same numbers only on the same kind of machine."""


@dataclass(frozen=True)
class VeraAdapter(PeftAdapter):
    """Two shared matrices, two vectors per module."""

    kind: ClassVar[str] = "VERA"

    def added(self, path: str, inputs: int, outputs: int) -> int:
        return int(self.options.rank) + outputs

    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """The two tensors that the vectors multiply."""
        return False, int(self.options.rank) + outputs

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """Bytes of A and B, in the precision of the base."""
        sizes = shapes(facts, self.targets)
        chosen = [sizes[path] for path in resolve(self.targets, facts, tuple(sizes)).modules]
        wide, high = max(inputs for inputs, _ in chosen), max(outputs for _, outputs in chosen)
        return int(self.options.rank) * (wide + high) * (4 if precision == "fp32" else 2)

    def settings(self) -> Mapping[str, Any]:
        return {
            "r": self.options.rank,
            "vera_dropout": self.options.dropout,
            "d_initial": self.options.first,
            "projection_prng_key": self.options.projection_seed,
            "save_projection": self.options.save_projection,
        }

    def first_number(self, name: str) -> float | None:
        return 0.0 if name.startswith("vera_lambda_b") else float(self.options.first)


def build(options: VeraOptions, context: Context) -> VeraAdapter:
    """Builder of the adapter `vera`."""
    made = VeraAdapter(options)
    return replace(made, begins=begins_with(options, context, made))
