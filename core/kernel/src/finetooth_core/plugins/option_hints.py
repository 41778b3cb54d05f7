"""A hint that needs the plugins: `rank=8` probably means an option of the recipe's adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import FinetoothError, RecipeError
from finetooth_recipes import yaml_text
from finetooth_recipes.overrides import absolute_files, apply_overrides
from finetooth_recipes.problems import RecipeProblems, plain_data
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.text.nearest import form

from finetooth_core.plugins import manager
from finetooth_core.plugins.builders import options_model
from finetooth_core.plugins.catalog import Catalog
from finetooth_core.settings.recipe import load

SECTIONS = ("adapter", "optimizer", "schedule", "method", "backend", "hardware", "quantizer")
"""Sections with one pick, in the order of the search for an option."""

_UNKNOWN = "unknown setting"


def with_option_hints(
    error: RecipeError,
    recipe: Path | str | Mapping[str, Any],
    overrides: Sequence[str],
    *,
    plugins: Sequence[str] = (),
    blocked: Sequence[str] = (),
) -> RecipeError:
    """The error, with a hint at unknown top-level settings that are names of a picked entry's options.

    Args:
        recipe, overrides: the wrong input.
        plugins, blocked: as for `finetooth_core.api.session`.
    """
    problems = error.problems if isinstance(error, RecipeProblems) else (error,)
    lost = [problem for problem in problems if _is_lost(problem)]
    if not lost:
        return error
    folder = Path.cwd() if isinstance(recipe, Mapping) else Path(recipe).parent.absolute()
    settings = _given(recipe, overrides, absolute_files(plugins))
    unknown = {problem.setting for problem in problems if _UNKNOWN in problem.problem}
    settings = {key: value for key, value in settings.items() if key not in unknown}
    try:
        started = manager.start(files=load(settings, base=folder).plugins, blocked=blocked, base=folder, strict=False)
    except FinetoothError:
        return error  # with further mistakes, the picks are unknown
    options = {**dict(_loader_options(started.catalog)), **dict(_options(settings, started.catalog))}
    for problem in lost:
        if form(problem.setting) in options:
            problem.action = options[form(problem.setting)]
    return RecipeProblems(problems) if isinstance(error, RecipeProblems) else error


def _is_lost(problem: RecipeError) -> bool:
    """Whether a problem is an unknown top-level key. A key that is exactly a setting inside a section (`train.seed`)
    already has a hint."""
    suggested = problem.action.startswith("did you mean") and "." in problem.action
    return _UNKNOWN in problem.problem and "." not in problem.setting and not suggested


def _options(settings: Mapping[str, Any], catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Form and full setting of every option of the picked entries; the last of a form wins, so the most important comes
    last."""
    for kind in reversed(SECTIONS):
        section = "quantization" if kind == "quantizer" else kind
        pick = settings.get(section, AUTO)
        name = pick.get("name", AUTO) if isinstance(pick, Mapping) else pick
        try:
            registered = catalog.default(kind) if name == AUTO else catalog.get(kind, str(name))
            model = options_model(registered.entry, registered.distribution)
        except FinetoothError:
            continue  # its own mistake is reported after this one is fixed
        yield from ((form(option), f"did you mean {section}.{option}?") for option in model.model_fields)


def _loader_options(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """The options of loaders. The model chooses the loader, so a recipe with an option must name the loader."""
    for registered in catalog.all("loader"):
        with suppress(FinetoothError):
            for option in options_model(registered.entry, registered.distribution).model_fields:
                picked = f"model: {{name: ..., loader: {{name: {registered.entry.name}, {option}: ...}}}}"
                yield form(option), f"it is an option of a loader: {picked}"


def _given(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str], plugins: Sequence[str]) -> dict[str, Any]:
    """The user's unchecked recipe; it was read before, so reading cannot fail."""
    if not isinstance(recipe, Mapping):
        recipe = yaml_text.read_yaml(Path(recipe).read_bytes().decode("utf-8-sig"), str(recipe)).value
    settings: dict[str, Any] = plain_data(recipe, ())
    apply_overrides(settings, overrides, plugins)
    return settings
