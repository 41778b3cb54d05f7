"""Where the rows of a script's trainer come from, and what it does with them on the way."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_importer.expressions import UNKNOWN, Assigned, called_of, value_of
from finetooth_importer.tools import rows

HARMLESS = ("shuffle", "remove_columns", "select_columns", "with_format", "set_format", "cast", "cast_column")
"""Methods of a dataset that change nothing of what is read, or only the order, which is `train.shuffle`'s."""
SPLIT = "train_test_split"


@dataclass(frozen=True)
class Traced:
    """How an expression comes from a `load_dataset`.

    Attributes:
        loading: the call; None where that cannot be told.
        steps: what was done with its rows, in order: calls of methods, and names of parts.
    """

    loading: ast.Call | None
    steps: tuple[ast.Call | str, ...]


def traced(node: ast.expr, names: Assigned) -> Traced:
    """Follow an expression to where its rows come from: `rows = rows.map(...)` means what `rows` was before."""
    steps: list[ast.Call | str] = []
    place: dict[str, int] = {}
    while True:
        if isinstance(node, ast.Call) and called_of(node) == "load_dataset":
            return Traced(node, tuple(reversed(steps)))
        if isinstance(node, ast.Name):
            place[node.id] = place.get(node.id, len(names.get(node.id, ()))) - 1
            if place[node.id] < 0:
                return Traced(None, ())
            node = names[node.id][place[node.id]]
        elif isinstance(node, ast.Subscript):
            steps.append(str(value_of(node.slice, names)))
            node = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            steps.append(node)
            node = node.func.value
        else:
            return Traced(None, ())


def rows_of(keywords: Mapping[str, ast.expr], names: Assigned, tree: ast.AST) -> dict[str, Any]:
    """Keys for the rows that a trainer trains and measures: name, configuration, split, and each step in between."""
    keys: dict[str, Any] = {}
    train = keywords.get("train_dataset")
    if train is None:
        return {}
    way = traced(train, names)
    if way.loading is None:
        return {"train_dataset": UNKNOWN}
    parts = _parts(way, names)
    keys |= _loaded(way.loading, names, parts.get("split"))
    keys |= _steps(way, names, tree)
    if "eval_dataset" not in keywords:
        return keys
    measured = traced(keywords["eval_dataset"], names)
    others = _parts(measured, names) if measured.loading is not None else {}
    if measured.loading is None:
        keys["eval_dataset"] = UNKNOWN
    elif SPLIT in others:
        keys[SPLIT] = others[SPLIT]
    else:
        made = _loaded(measured.loading, names, others.get("split"))
        keys["eval_dataset"] = made.get("dataset_name", UNKNOWN)
        keys["dataset_test_split"] = made.get("dataset_train_split", "train")
    return keys


def _parts(way: Traced, names: Assigned) -> dict[str, Any]:
    """The split that a way names, and what it is split by."""
    parts: dict[str, Any] = {}
    for step in way.steps:
        if isinstance(step, str):
            if SPLIT not in parts:
                parts["split"] = step
        elif called_of(step) == SPLIT:
            settings = {keyword.arg: value_of(keyword.value, names) for keyword in step.keywords if keyword.arg}
            if step.args:
                settings["test_size"] = value_of(step.args[0], names)
            parts[SPLIT] = {key: value for key, value in settings.items() if value is not UNKNOWN}
    return parts


def _loaded(loading: ast.Call, names: Assigned, split: Any) -> dict[str, Any]:
    """Name, configuration, split and files of a `load_dataset(...)`.

    Args:
        split: that was picked of it; None where it names its own.
    """
    words = [value_of(argument, names) for argument in loading.args]
    about = {keyword.arg: value_of(keyword.value, names) for keyword in loading.keywords if keyword.arg}
    split = about.get("split", split)
    path = words[0] if words else about.get("path")
    keys = {"dataset_name": path} if path is not None else {}
    config = about.get("name", words[1] if len(words) > 1 else None)
    if config is not None:
        keys["dataset_config"] = config
    if "data_files" in about:
        files = about["data_files"]
        paths = [] if files is UNKNOWN or path is None else rows.named(str(path), files, str(split or "train"))
        if paths:
            keys["dataset_name"] = paths if len(paths) > 1 else paths[0]
        else:
            keys["data_files"] = files
    if isinstance(split, str):
        keys["dataset_train_split"] = split
    return keys


def _steps(way: Traced, names: Assigned, tree: ast.AST) -> dict[str, Any]:
    """What is done with the rows, each as a key `train_dataset.METHOD`."""
    keys: dict[str, Any] = {}
    for step in way.steps:
        if isinstance(step, str) or called_of(step) == SPLIT:
            continue
        name = called_of(step)
        value: Any = (
            ast.unparse(step.args[0]) if step.args else ", ".join(ast.unparse(argument) for argument in step.keywords)
        )
        if name == "map" and step.args:
            value = {"function": value, **_made(step.args[0], tree)}
        elif name == "select" and step.args and isinstance(step.args[0], ast.Call):
            bounds = [value_of(argument, names) for argument in step.args[0].args]
            if (
                called_of(step.args[0]) == "range"
                and len(bounds) < 3
                and all(isinstance(bound, int) for bound in bounds)
            ):
                value = f"[{':'.join(map(str, bounds if len(bounds) == 2 else ['', *bounds]))}]"
        keys[f"train_dataset.{name}"] = value
    return keys


def _made(function: ast.expr, tree: ast.AST) -> dict[str, Any]:
    """The format of rows that a function makes messages, or a prompt and a completion, of their columns; empty where it
    does something else."""
    body: ast.expr | None = function.body if isinstance(function, ast.Lambda) else None
    if isinstance(function, ast.Name):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == function.id and len(node.body) == 1:
                body = node.body[0].value if isinstance(node.body[0], ast.Return) else None
    if not isinstance(body, ast.Dict):
        return {}
    made = {value_of(key, {}): value for key, value in zip(body.keys, body.values, strict=True) if key is not None}
    sides = {key: _column(value) for key, value in made.items()}
    if set(sides) == {"prompt", "completion"} and all(sides.values()):
        return {
            "format": {"name": "prompt_completion", **sides, "style": "raw"},
            "row": {"prompt": "", "completion": ""},
        }
    messages = made.get("messages") if set(made) == {"messages"} else None
    spoken = [_message(element) for element in messages.elts] if isinstance(messages, ast.List) else []
    system = (
        spoken[0][1] if spoken and spoken[0] and spoken[0][0] == "system" and isinstance(spoken[0][1], str) else None
    )
    turns = [turn for turn in spoken[system is not None :] if turn]
    if len(turns) != 2 or len(turns) + (system is not None) != len(spoken):
        return {}
    (asks, prompt), (answers, completion) = turns
    columns = [_column(text) if isinstance(text, ast.expr) else "" for text in (prompt, completion)]
    if (asks, answers) != ("user", "assistant") or not all(columns):
        return {}
    format_ = {"name": "prompt_completion", "prompt": columns[0], "completion": columns[1]}
    return {"format": {**format_, **({"system": system} if system else {})}, "row": {"messages": []}}


def _message(node: ast.expr) -> tuple[str, str | ast.expr] | None:
    """Role and content of a message that is written out; a content that is plain text as such."""
    if not isinstance(node, ast.Dict):
        return None
    pairs = {value_of(key, {}): value for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    if set(pairs) != {"role", "content"}:
        return None
    content = value_of(pairs["content"], {})
    return str(value_of(pairs["role"], {})), content if isinstance(content, str) else pairs["content"]


def _column(node: ast.expr) -> str:
    """The column that `row["name"]` means; empty for another expression."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        name = value_of(node.slice, {})
        return name if isinstance(name, str) else ""
    return ""
