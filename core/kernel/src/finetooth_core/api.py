"""A recipe from Python: `finetooth.run(recipe)`, `finetooth.engine(recipe)`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_core.session import Session
from finetooth_core.sessions import resume_session, session

if TYPE_CHECKING:
    from finetooth_hooks.engine import Engine
    from finetooth_hooks.options import Options
    from finetooth_recipes.entry_functions import EntryFunctions
    from finetooth_saving.runs.result import Result

    from finetooth_core.settings.recipe import Recipe

__all__ = ["build_entry", "engine", "entry_functions", "resume", "resume_session", "run", "section_function", "session"]


def run(recipe: Path | str | Mapping[str, Any] | Recipe, *overrides: str, plugins: Sequence[str] = ()) -> Result:
    """Train a recipe like `ft run`, without its output. A notebook draws the losses live.

    Example:
        >>> result = finetooth.run("recipe.yaml", "train.max_steps=10")  # doctest: +SKIP
        >>> result.frame["loss"].plot()  # doctest: +SKIP
    """
    return _watched(session(recipe, *overrides, plugins=plugins))


def resume(run: Path | str, *overrides: str, plugins: Sequence[str] = (), accept_changes: bool = False) -> Result:
    """Resume an interrupted run like `ft resume`, without its output. A notebook shows it as with `run`.

    Args:
        run: its folder, or the URL that its checkpoints were sent to.

    Example:
        >>> outcome = finetooth.resume("runs/mine")  # doctest: +SKIP
    """
    return _watched(resume_session(run, *overrides, plugins=plugins, accept_changes=accept_changes))


def _watched(made: Session) -> Result:
    """Run a session; in a notebook with its trackers."""
    from finetooth_saving.runs.result import Result

    from finetooth_core.plugins.trackers import PickedTracker

    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and (shell := ipython.get_ipython()) is not None and shell.has_trait("kernel"):
        drawn = [r.full_name for r in made.plugins.catalog.all("tracker") if getattr(r.entry, "in_notebooks", False)]
        built = (build_entry("tracker", name, "trackers", "") for name in drawn)
        made.added_trackers = tuple(PickedTracker(name, curves, named_by_user=False) for curves, name in built)
    result = Result.of(made.run())
    from finetooth_core.cli.run import export_listed
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State

    export_listed(State(StartOptions()), made, result, lambda line: None)
    return result


def engine(
    recipe: Path | str | Mapping[str, Any] | Recipe, *overrides: str, plugins: Sequence[str] = (),
    accept_memory: bool = False,
) -> Engine:  # fmt: skip
    """The engine of a recipe, to be driven step by step with its eight primitives; the recipe's data are not read.

    Args:
        accept_memory: build it although the plan, with rows of `train.max_length`, says that memory will not suffice;
            the same as `train.accept_memory=true`.

    Raises:
        PlanError: it does not fit into memory; says what would.

    Example:
        >>> engine = finetooth.engine({"model": "smollm2-135m"})  # doctest: +SKIP
        >>> engine.logprobs(data)  # doctest: +SKIP
    """
    made = session(recipe, *overrides, plugins=plugins, data=False)
    if not accept_memory:
        made.check_memory()
    return made.engine


def entry_functions(kind: str) -> EntryFunctions:
    """The installed entries of a kind as functions: `finetooth.adapter.lora(rank=8)`."""
    from finetooth_recipes.entry_functions import EntryFunctions

    from finetooth_core.plugins.builders import options_model
    from finetooth_core.plugins.manager import start
    from finetooth_core.settings.recipe import validate_options

    catalog = start().catalog
    return EntryFunctions(kind, catalog, options_model, lambda pick: validate_options(catalog, kind, pick, kind))


def build_entry(kind: str, pick: str | Mapping[str, Any], setting: str, framework: str) -> tuple[Any, str]:
    """Build an installed entry outside a run; return it with the entry's full name.

    Args:
        pick: as in a recipe.
        setting: of the pick, for messages.
        framework: of the entry.
    """
    from finetooth_toolbox.decisions import Decisions

    from finetooth_core.plugins.manager import start
    from finetooth_core.plugins.part_builder import Builder

    context: Any = None  # of a run
    built = Builder(start().catalog, Decisions(), context).build(kind, pick, setting=setting, framework=framework)
    return built.part, built.registered.full_name


def section_function(name: str) -> Callable[..., Options]:
    """A recipe or a section of it as a function: `finetooth.Train(epochs=2)`."""
    from finetooth_recipes.entry_functions import section_function

    from finetooth_core.settings.recipe import Recipe, leaves, load

    return section_function(name, Recipe, load, leaves())
