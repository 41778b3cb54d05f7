"""The worker's side: a function of a file or module, called with what it takes.

A function takes keyword arguments, as TRL calls them: `prompts`, `completions`, `completion_ids`, a list for each
further column, `trainer_state`, `log_extra` and `log_metric`. One without `**kwargs` gets those that it names.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetooth_workers.modules import loaded_file


def serve(file: str | None, module: str | None, function: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What a worker calls with each request.

    Raises:
        ValueError: the module has no such function.
    """
    where = loaded_file(Path(file)) if file else import_module(str(module))
    target = vars(where).get(function)
    if not callable(target):
        names = [name for name, each in vars(where).items() if inspect.isfunction(each) and not name.startswith("_")]
        raise ValueError(f"no function {function!r}; there are: {', '.join(names) or 'none'}")
    return lambda request: call(target, request)


def call(function: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a request, and what the function logs."""
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    available = {
        **request["columns"],
        "prompts": request["prompts"],
        "completions": request["completions"],
        "completion_ids": request["completion_ids"],
        "trainer_state": SimpleNamespace(**request["state"]),
        "log_extra": lambda column, values: extra.setdefault(str(column), []).extend(_text(value) for value in values),
        "log_metric": lambda name, value: metrics.setdefault(str(name), []).append(float(value)),
    }
    returned = function(**_taken(function, available))
    if inspect.isawaitable(returned):
        returned = asyncio.run(_awaited(returned))
    scores = [_number(score) for score in returned] if _is_list(returned) else _text(returned)
    return {"scores": scores, "extra": extra, "metrics": metrics}


def _taken(function: Callable[..., Any], available: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a function takes of it.

    Raises:
        TypeError: it wants a column that rows do not have.
    """
    parameters = inspect.signature(function).parameters.values()
    wanted = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    missing = [
        parameter.name
        for parameter in wanted
        if parameter.default is parameter.empty and parameter.name not in available
    ]
    if missing:
        columns = sorted(set(available) - {"log_extra", "log_metric", "trainer_state"})
        raise TypeError(f"it takes {missing[0]!r}, but no column has this name; there are: {', '.join(columns)}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return available
    return {parameter.name: available[parameter.name] for parameter in wanted if parameter.name in available}


async def _awaited(pending: Any) -> Any:
    return await pending


def _is_list(value: Any) -> bool:
    return not isinstance(value, str | bytes | Mapping) and hasattr(type(value), "__iter__")


def _number(score: Any) -> Any:
    """A score as JSON has it: numbers of other libraries as floats, anything else as its text."""
    if score is None or isinstance(score, str):
        return score
    return float(score) if hasattr(type(score), "__float__") else {"is": _text(score)}


def _text(value: Any) -> Any:
    """What JSON has, as it is; all else as its text."""
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)[:200]
