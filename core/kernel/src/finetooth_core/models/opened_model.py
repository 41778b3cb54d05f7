"""Opens a trained run or a model for callers that are not runs: a reward, a command, `ft chat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetooth_hooks.entries import Method
from finetooth_saving.run_folder import FIXED, is_whole, run_of
from finetooth_toolbox.files.trained_over import check_base

if TYPE_CHECKING:
    from finetooth_hooks.context import Catalog, Context
    from finetooth_hooks.engine import Engine
    from finetooth_hooks.plan import Plan

    from finetooth_core.settings.recipe import Recipe


class ModelSession(Protocol):
    """A session without data, as far as an opened model needs it."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def planned_context(self) -> Context:
        """With the plan in it."""
        ...

    @property
    def engine(self) -> Engine: ...


OpenSession = Callable[[Mapping[str, Any]], ModelSession]
"""Makes a session without data for a recipe."""


@dataclass
class OpenedModel:
    """Implements `finetooth_hooks.context.Opened`.

    Attributes:
        reference: as it was asked for.
        folder: of the run; None for a model.
        session: of the run's own recipe, or of one that names only the model.
    """

    reference: str
    folder: Path | None
    session: ModelSession

    @cached_property
    def engine(self) -> Engine:
        """The engine with the run's weights."""
        engine = self.session.engine
        if self.artifact is not None:
            if not is_whole(self.artifact):
                check_base(self.artifact, self.context.model, own=True)
            engine.restore(self.artifact)
        return engine

    @cached_property
    def artifact(self) -> Path | None:
        """Folder of its artifact; None for a model."""
        from finetooth_saving.run_folder import artifact_of

        return None if self.folder is None else artifact_of(self.folder)

    @property
    def context(self) -> Context:
        """The context of the model: its tokenizer, its renderer."""
        return self.session.planned_context

    @property
    def method(self) -> str:
        """Full name of the method that the run's plan picked; empty for a model."""
        return "" if self.folder is None else str(self._plan["picks"].get("method", ""))

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of that method, as the run's plan has them."""
        method_options: Mapping[str, Any] = {} if self.folder is None else self._plan["options"].get("method", {})
        return method_options

    @cached_property
    def _plan(self) -> Mapping[str, Any]:
        """What the run decided; its recipe may have left the choice open."""
        from finetooth_saving.run_folder import plan_of

        assert self.folder is not None
        return plan_of(self.folder)


def open_model(reference: str, session: OpenSession, changes: Mapping[str, Any] | None = None) -> OpenedModel:
    """A run by its folder or by its name under `runs/`, or any reference of `model:`.

    Args:
        session: makes one.
        changes: sections of the recipe to replace. Settings on which the run's weights depend (its renderer, for one)
            stay the run's, unless they name them.

    Raises:
        UserError: the run kept no artifact, or a file of it is damaged.
        RecipeError: nothing is there.
    """
    from finetooth_saving.run_folder import artifact_of
    from finetooth_saving.run_recipe import without_training

    from finetooth_core.settings.run_recipe import recipe_of

    folder = run_of(reference)
    recipe: dict[str, Any] = {"model": reference}
    if folder is not None:
        artifact_of(folder)  # before the base is loaded
        recipe = recipe_of(folder)
    recipe = without_training({**recipe, **kept_meaning(recipe, changes or {})})
    return OpenedModel(reference, folder, session(recipe))


def kept_meaning(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections that replace those of a recipe, with the old picks on which trained weights depend."""
    made = dict(changes)
    for section, *inner in FIXED.values():
        before, now = recipe.get(section), made.get(section)
        if not inner or not isinstance(before, Mapping) or not isinstance(now, Mapping):
            continue
        (name,) = inner
        if name in before and name not in now:
            made[section] = now = {**now, name: before[name]}
    return made


def is_scalar(plan: Plan, catalog: Catalog) -> bool:
    """Whether the method of a plan trains a scalar head, which generates no text."""
    name = plan.picks.get("method")
    entry = None if name is None else catalog.get("method", name).entry
    return isinstance(entry, Method) and entry.head is not None and entry.head.exported_as != "none"
