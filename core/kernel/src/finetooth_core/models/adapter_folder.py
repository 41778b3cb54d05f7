"""An adapter's folder, from any tool, as the model of a recipe: its base merged with the adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from finetooth_hooks.entries import Adapter
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import ModelInfo
from finetooth_toolbox.decisions import Decisions

from finetooth_core.models.stages import Parent, ParentOf, Trained
from finetooth_core.plugins.part_builder import Builder
from finetooth_core.settings.recipe import Recipe, load


class FromAdapter(Trained):
    """A `protocols.Loader` of a base merged with an adapter.

    Args:
        folder: of the adapter.
        base: reference of its base model.
        parent: makes the loader that merges the adapter into it.
    """

    def __init__(self, folder: Path, base: str, parent: Callable[[], Parent]) -> None:
        super().__init__(folder, folder, parent)
        self.base = base

    def decide(self, log: Decisions, named: str) -> None:
        """Say in the plan what the model is."""
        registered, options = self.loading
        log.pick("loader", registered.full_name, options)
        log.decide("model", named, f"an adapter; it is merged into {self.base} in fp32, and the result is the base")

    def describe(self, reference: str) -> ModelInfo:
        """The base, with the adapter's files."""
        info = super().describe(reference)
        return replace(info, files=(*info.files, *self._files))

    def digest(self) -> str:
        """SHA-256 of the adapter's files, and of its base's."""
        hasher = hashlib.sha256(self.parent.loader.describe(self.base).revision.encode())
        for path in self._files:
            hasher.update(hashlib.sha256(path.read_bytes()).digest())
        return hasher.hexdigest()

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        return tuple(sorted(path for path in self.folder.iterdir() if path.suffix in (".json", ".safetensors")))


def from_adapter(recipe: Recipe, builder: Builder, parent_of: ParentOf) -> FromAdapter | None:
    """The loader for a recipe whose model is the folder of an adapter; None if it is none.

    Args:
        parent_of: makes what the base is loaded with.

    Raises:
        RecipeError: the adapter does not name its base.
    """
    name = recipe.model.name
    folder = _folder(name)
    if folder is None:
        return None
    for registered in builder.catalog.all("adapter"):
        entry = registered.entry
        assert isinstance(entry, Adapter)
        base = None if entry.base_of is None else entry.base_of(folder)
        if base is None:
            continue
        if not base:
            raise RecipeError(
                "model", f"{name}: the adapter does not name the model that it was made for", action="add that to it"
            )
        base_recipe = load({"model": base, "adapter": registered.full_name}, base=recipe.folder)
        loader = FromAdapter(folder.absolute(), base, partial(parent_of, base_recipe, folder))
        loader.decide(builder.log, name)
        return loader
    return None


def _folder(reference: str) -> Path | None:
    """The local folder of a reference."""
    try:
        folder = Path(reference).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long for a path; ~ of nobody
        return None
