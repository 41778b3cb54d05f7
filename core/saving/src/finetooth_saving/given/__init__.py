"""Saves the Python objects of a recipe as files: rows in memory, and functions.

A run must be able to resume, to pass its rows to worker processes and to report its inputs. So every value of a recipe
that is not text is written to a folder next to the runs, under its hash, and the recipe names the file. Equal rows are
one file for all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import RecipeError

from finetooth_saving.run_folder import RUNS

if TYPE_CHECKING:
    from finetooth_hooks.options import Options

FOLDER = "kept"
"""The folder next to the runs."""
PLACES = "data.format, method.loss, method.rewards and evaluate.evaluators"
"""Settings that accept a function."""


def keep_values(recipe: Path | str | Mapping[str, Any] | Options) -> Path | str | Mapping[str, Any]:
    """A recipe that names files instead of rows and functions. A recipe without such objects, or a file, is returned
    unchanged; a typed recipe becomes a mapping of its set fields.

    Raises:
        RecipeError: the rows are malformed, or a function cannot be saved; names the setting.
    """
    if hasattr(recipe, "model_dump"):
        recipe = recipe.model_dump(exclude_unset=True, warnings=False)  # no type includes rows in memory
    if not isinstance(recipe, Mapping) or not any(True for _ in _objects(recipe)):
        return recipe
    output = recipe.get("output")
    folder = (Path(output).parent if isinstance(output, str) else RUNS) / FOLDER
    plugins: list[Any] = list(recipe.get("plugins") or ())
    made = {name: _value(value, name, folder, plugins) for name, value in recipe.items()}
    return {**made, "plugins": plugins} if plugins else made


def _objects(value: Any) -> Iterator[Any]:
    """All values in a recipe that are not texts, numbers or paths, and lists of rows."""
    if isinstance(value, Mapping):
        for content in value.values():
            yield from _objects(content)
    elif isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) and "name" not in item for item in value):
            yield value
        for content in value:
            yield from _objects(content)
    elif value is not None and not isinstance(value, str | int | float | Path):
        yield value


def _value(value: Any, setting: str, folder: Path, plugins: list[Any]) -> Any:
    """The value of a setting, with files instead of objects."""
    from finetooth_saving.given import functions, rows

    nested = isinstance(value, Mapping) and not hasattr(value, "column_names")  # a DatasetDict is a mapping too
    if setting in ("data.train", "data.eval") and not (nested or isinstance(value, str | Path)):
        return rows.keep_rows(value, setting, folder)
    if callable(value):
        if setting == "method.loss":
            return _plugin(functions.keep_loss, value, setting, folder, plugins)
        if setting == "data.format":
            return _plugin(functions.keep_format, value, setting, folder, plugins)
        if setting == "method.rewards":
            return [functions.keep_reward(value, setting, folder)]
        if setting == "evaluate.evaluators":
            return [functions.keep_evaluator(value, setting, folder)]
        raise _misplaced(value, setting)
    if isinstance(value, Mapping):
        return {name: _value(item, f"{setting}.{name}", folder, plugins) for name, item in value.items()}
    if isinstance(value, list | tuple) and setting in ("method.rewards", "evaluate.evaluators"):
        keep = functions.keep_reward if setting == "method.rewards" else functions.keep_evaluator
        return [keep(item, setting, folder) if callable(item) else item for item in value]
    if isinstance(value, list | tuple):
        for item in filter(callable, value):
            raise _misplaced(item, setting)
    return value


def _misplaced(function: Any, setting: str) -> RecipeError:
    name = getattr(function, "__name__", type(function).__name__)
    action = f"if it returns the value, call it: {name}(); functions may stand at {PLACES}"
    return RecipeError(setting, f"it is given the function {name}", action=action)


def _plugin(
    keep: Callable[[Any, str, Path], tuple[str, str]], function: Any, setting: str, folder: Path, plugins: list[Any]
) -> str:
    """Save a function as the file of a plugin, and add it to the recipe's plugins.

    Returns:
        The name of its entry.
    """
    name, file = keep(function, setting, folder)
    plugins.append(file)
    return name
