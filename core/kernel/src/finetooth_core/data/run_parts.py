"""Parts for making the data of a run, in the kernel's own types."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_recipes.recipe_data import DataSection
from finetooth_rows.parts import DataParts

from finetooth_core.plugins.part_builder import Builder
from finetooth_core.settings.recipe import Recipe


@dataclass(frozen=True)
class RunParts(DataParts):
    """`DataParts` of a run."""

    recipe: Recipe
    builder: Builder

    @property
    def section(self) -> DataSection:
        """`data` of the recipe."""
        return self.recipe.data
