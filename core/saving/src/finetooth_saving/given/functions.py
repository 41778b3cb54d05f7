"""Saves functions of a recipe as Python files, and makes the picks that name them."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import RecipeError
from finetooth_toolbox.files.cache_folder import write_whole

from finetooth_saving.given.source import source_of

LOSS = """

from finetooth_hooks import Loss as _Loss
from finetooth_hooks import hookimpl as _hookimpl
from finetooth_hooks.options import NoOptions as _NoOptions


@_hookimpl
def ft_losses():
    yield _Loss(name={name!r}, build=f"{{__name__}}:_build", summary={summary!r}, {declared})


def _build(options: _NoOptions, context):
    return {built}
"""
SIMPLE = '''

def _whole(outputs, data, state):
    """What the function makes of each target, weighted and summed over those that train."""
    from finetooth_hooks import Contribution, LossResult
    from finetooth_hooks import arrays as xp

    each = xp.where(data.mask, {name}(outputs, data), 0.0)
    return LossResult({{{name!r}: Contribution(xp.sum(data.fields["weights"] * each), per="weights")}})
'''
FORMAT = """

from finetooth_hooks import row_format as _row_format

_row_format(name={entry!r})({name})
"""


def keep_reward(function: Callable[..., Any], setting: str, folder: Path) -> dict[str, Any]:
    """The pick of a reward that calls the function, as `python_function` does.

    Raises:
        RecipeError: it cannot be kept.
    """
    name, text = source_of(function, setting)
    return {"name": "python_function", "file": _write(folder, name, text), "function": name, "label": name}


def keep_evaluator(function: Callable[..., Any], setting: str, folder: Path) -> dict[str, Any]:
    """The pick of an evaluator that asks held-out questions and scores the answers with the function, as a reward.

    Raises:
        RecipeError: it cannot be kept.
    """
    return {"name": "exact_match", "reward": keep_reward(function, setting, folder)}


def keep_loss(function: Callable[..., Any], setting: str, folder: Path) -> tuple[str, str]:
    """A function `(outputs, data, state)` that returns a `LossResult`, or `(outputs, data)` that returns the loss of
    each target, as the plugin of a loss. The entry declares the names that it reads from `outputs`, `data.fields` and
    `data.scalars`.

    Returns:
        The name of the loss, and the file.

    Raises:
        RecipeError: the function cannot be saved, or takes other arguments.
    """
    name, text = source_of(function, setting)
    taken = list(inspect.signature(function).parameters)
    if len(taken) not in (2, 3):
        raise RecipeError(
            setting, f"the function {name} takes {len(taken)} arguments", action="a loss takes outputs and data, and "
            "returns the loss of each target; or outputs, data and state, and returns a LossResult"
        )  # fmt: skip
    needs, fields, scalars = _read_by_name(text, name, taken[0])
    declared = f"needs=frozenset({sorted(needs or {'logprobs'})!r})"
    for key, names in (("fields", fields - {"weights"}), ("scalars", scalars)):
        declared += f", {key}=frozenset({sorted(names)!r})" if names else ""
    simple = len(taken) == 2
    text += SIMPLE.format(name=name) if simple else ""
    summary = (function.__doc__ or f"the function {name}").strip().partition("\n")[0].rstrip(".")
    entry = _unused(name, text)
    text += LOSS.format(name=entry, summary=summary, declared=declared, built="_whole" if simple else name)
    return entry, _write(folder, name, text)


def keep_format(function: Callable[..., Any], setting: str, folder: Path) -> tuple[str, str]:
    """Save a function from the columns of a row to an example, as the plugin of a format.

    Returns:
        The name of the format, and the file.

    Raises:
        RecipeError: it cannot be kept.
    """
    name, text = source_of(function, setting)
    entry = _unused(name, text)
    return entry, _write(folder, name, text + FORMAT.format(name=name, entry=entry))


def _unused(name: str, text: str) -> str:
    """A name for the entry that no installed entry has."""
    return f"{name}-{_hash(text.encode())}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read_by_name(text: str, name: str, outputs: str) -> tuple[set[str], set[str], set[str]]:
    """The names that a loss reads: `outputs["NAME"]`, `data.fields["NAME"]`, `data.scalars["NAME"]`."""
    read: dict[str, set[str]] = {"outputs": set(), "fields": set(), "scalars": set()}
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == outputs:
            read["outputs"].add(str(node.slice.value))
        elif isinstance(node.value, ast.Attribute) and node.value.attr in read:
            read[node.value.attr].add(str(node.slice.value))
    return read["outputs"], read["fields"], read["scalars"]


def _write(folder: Path, name: str, text: str) -> str:
    """Write the file under the hash of its content.

    Returns:
        Its path.
    """
    content = text.encode("utf-8")
    path = folder / f"{name}-{_hash(content)}.py"
    if not path.exists():
        write_whole(path, content)
    return path.as_posix()
