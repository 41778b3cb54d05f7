"""(IA)3 (Liu et al., 2022, arXiv:2205.05638): a factor for each element of keys, values, and the hidden layer of the
feed-forward block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from finetooth_hooks import Context
from finetooth_modelfiles.targets import matching
from pydantic import Field, model_validator

from finetooth_peft.adapter import PeftAdapter, TargetOptions, begins_with


class Ia3Options(TargetOptions):
    """Options of `ia3`."""

    targets: list[str] = Field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"], min_length=1)
    """Modules with scale factors, by names that end their paths or regular expressions that match whole paths. Factors
    scale a module's outputs, or its inputs if `feedforward` names it."""
    feedforward: list[str] = Field(default_factory=lambda: ["down_proj"])
    """Targets whose inputs are scaled: the last module of the feed-forward block."""

    @model_validator(mode="after")
    def _are_targets(self) -> Ia3Options:
        for name in self.feedforward:
            if name not in self.targets:
                raise ValueError(f"feedforward: {name!r} is none of the targets: add it to adapter.targets")
        return self


@dataclass(frozen=True)
class Ia3Adapter(PeftAdapter):
    """A factor for each output, or input, of a module."""

    kind: ClassVar[str] = "IA3"

    def added(self, path: str, inputs: int, outputs: int) -> int:
        scaled = any(matching(name, (path,)) for name in self.options.feedforward)
        return inputs if scaled else outputs

    def kept(self, path: str, inputs: int, outputs: int) -> tuple[bool, int]:
        """The multiplied tensor."""
        scaled = any(matching(name, (path,)) for name in self.options.feedforward)
        return scaled, 0 if scaled else outputs

    def settings(self) -> Mapping[str, Any]:
        return {"feedforward_modules": sorted(self.options.feedforward)}

    def first_number(self, name: str) -> float | None:
        return 1.0


def build(options: Ia3Options, context: Context) -> Ia3Adapter:
    """Builder of the adapter `ia3`."""
    made = Ia3Adapter(options)
    return replace(made, begins=begins_with(options, context, made))
