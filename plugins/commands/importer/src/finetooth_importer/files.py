"""Another tool's file: YAML, JSON, a command line, or a Python script that is read and never run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from finetooth_hooks import UserError

from finetooth_importer import shell
from finetooth_importer.account import COMPUTED
from finetooth_importer.tools import (
    autotrain,
    axolotl,
    llamafactory,
    mlxlm,
    mudpuppy,
    rows,
    torchtune,
    trl,
    unsloth,
)

READERS = {
    "unsloth": unsloth,
    "mud-puppy": mudpuppy,
    "torchtune": torchtune,
    "autotrain": autotrain,
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "mlx-lm": mlxlm,
    "trl": trl,
}
"""The tools, in the order in which it is asked whose keys they are."""

TOOLS = tuple(sorted(READERS))

_TRAINERS = {
    "SFTTrainer": "sft",
    "DPOTrainer": "dpo",
    "KTOTrainer": "kto",
    "ORPOTrainer": "orpo",
    "CPOTrainer": "cpo",
    "RewardTrainer": "reward",
    "PRMTrainer": "prm",
    "GRPOTrainer": "grpo",
    "RLOOTrainer": "rloo",
    "UnslothTrainer": "sft",
}
_PROGRAMS = {
    "mlx_lm.lora": "mlx-lm",
    "mlx_lm": "mlx-lm",
    "autotrain": "autotrain",
    "llamafactory-cli": "llamafactory",
    "train_bash": "llamafactory",
}
"""Programs whose flags are their tool's, however few there are."""

_CONFIG = re.compile(r"(Config|TrainingArguments|Arguments|LLMTrainingParams)$")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*(=.*)?$")


def read(path: Path) -> tuple[Mapping[str, Any], str]:
    """The keys of a file.

    Returns:
        Keys and values, and the tool whose file it is; empty if that cannot be told.

    Raises:
        UserError: no such file, none that can be read, or one without keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no file {path}", action="name the other tool's configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as text: {error}", action="name the other tool's configuration"
        ) from None
    if path.suffix == ".ipynb":
        given = of_script(of_notebook(text, path), path)
    elif path.suffix == ".py":
        given = of_script(text, path)
    elif path.suffix in (".sh", ".bash", ".txt", ".cmd") or re.match(
        r"\s*(trl|llamafactory-cli|axolotl|accelerate|python3?|mud-puppy|autotrain|tune|unsloth|mlx_lm\.lora)\s", text
    ):
        given, program = of_command(text, path)
        return given, program or tool_of(given)
    else:
        given = of_yaml(text, path)
    return given, tool_of(given)


def tool_of(given: Mapping[str, Any]) -> str:
    """The tool whose keys these are; empty if that cannot be told."""
    return next((name for name, module in READERS.items() if module.looks_like(given)), "")


def of_yaml(text: str, path: Path) -> Mapping[str, Any]:
    """Keys of a YAML or JSON file.

    Raises:
        UserError: it is neither, or no mapping.
    """
    try:
        found = json.loads(text) if path.suffix == ".json" else shell.read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{place}: {getattr(error, 'problem', '') or 'is no YAML'}", action="mend the line"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}", action="mend it, or name another file") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} has no keys", action="name a file with a mapping of settings")
    return {str(key): value for key, value in found.items()}


def of_command(text: str, path: Path) -> tuple[Mapping[str, Any], str]:
    """Flags of the last command of a text whose lines may be continued, and the tool whose program it is; empty if its
    flags have to show it.

    Raises:
        UserError: there are none.
    """
    for words in reversed(shell.commands(text, path)):
        given: dict[str, Any] = {}
        for place, word in enumerate(words):
            if (
                word in ("sft", "dpo", "kto", "grpo", "reward", "rloo", "orpo", "cpo")
                and place
                and words[place - 1] == "trl"
            ):
                given[trl.METHOD] = word
            script = re.search(r"(sft|dpo|kto|orpo|cpo|grpo|rloo|reward\w*|prm)\.py$", word)
            if script and not given:
                given[trl.METHOD] = re.sub(r"_.*|modeling", "", script[1])
        given |= _marked(words)
        flags = _flags(words)
        if flags or mudpuppy.MARK in given:
            return {**given, **flags}, next((_PROGRAMS[word] for word in map(_bare, words) if word in _PROGRAMS), "")
    raise UserError(f"{path}: no command with --settings", action="name a file with the command, or the tool's YAML")


def _bare(word: str) -> str:
    """A program's name without its folder."""
    return word.rpartition("/")[2].removesuffix(".py")


def _marked(words: list[str]) -> dict[str, Any]:
    """What words beside the flags say: whose command it is; mud-puppy's model and rows stand without a flag."""
    plain = [_bare(word) for word in words]
    if any(word in ("unsloth-cli", "unsloth") for word in plain):
        return {unsloth.MARK: True}
    start = next((place for place, word in enumerate(plain) if re.fullmatch(r"mud[-_]puppy(\.cli)?", word)), None)
    if start is None:
        return {}
    free: list[str] = []
    place = start + 1
    while place < len(words):
        name = words[place].lstrip("-").replace("-", "_")
        if not words[place].startswith("--"):
            free.append(words[place])
        elif "=" not in name and name not in mudpuppy.SWITCHES:
            place += 1
        place += 1
    return {mudpuppy.MARK: True, **dict(zip(("model", "dataset"), free, strict=False))}


def _flags(words: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.startswith("--") or not _FLAG.match(word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        values = [value] if equals else []
        bare = name.replace("-", "_") in mudpuppy.SWITCHES and "mud" in "".join(words[:4])
        while not equals and not bare and place < len(words) and not words[place].startswith("--"):
            values.append(words[place])
            place += 1
        made = [shell.value_of(one) for one in values]
        given[name.replace("-", "_")] = True if not made else made[0] if len(made) == 1 else made
    return given


def of_notebook(text: str, path: Path) -> str:
    """The code of a notebook's cells, without the lines that are for the notebook or a shell.

    Raises:
        UserError: it is no notebook.
    """
    try:
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no notebook", action="name another file") from None
    return "\n".join(cell for cell in code if not cell.lstrip().startswith("%%"))


def of_script(text: str, path: Path) -> Mapping[str, Any]:
    """What a Python script gives to configurations and trainers, as far as it stands there as plain values. Nothing of
    it runs.

    Raises:
        UserError: it is no Python, or has no configuration.
    """
    plain = "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in text.splitlines())
    try:
        tree = ast.parse(plain)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}", action="mend the line") from None
    names: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if not _names(node.value, name):  # `rows = rows.map(...)` says nothing new of where rows come from
                names[name] = node.value
    given: dict[str, Any] = {}
    idle, own = _idle(tree), False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        ours = isinstance(owner, ast.Name) and re.fullmatch(r"Fast\w*Model", owner.id)
        if ours and called in ("from_pretrained", "get_peft_model"):
            given[unsloth.MARK] = True
            first = {"model_name": _value(node.args[0], names)} if node.args and called == "from_pretrained" else {}
            given.update(
                first
                | {k.arg: _value(k.value, names) for k in node.keywords if k.arg not in (None, "model", "tokenizer")}
            )
        elif called in _SAVES and node not in idle:
            key, default = _SAVES[called]
            saved = next((_value(k.value, names) for k in node.keywords if k.arg == key), default)
            both = [one if isinstance(one, list) else [one] for one in (given.get(key, []), saved)]
            every = dict.fromkeys(one for some in both for one in some)
            given[key] = (
                next(iter(every)) if len(every) == 1 else [str(COMPUTED if one is _UNKNOWN else one) for one in every]
            )
        elif called == "train_on_responses_only":
            given["train_on_responses_only"] = True
        elif called in _TRAINERS:
            given[trl.METHOD] = _TRAINERS[called]
            given.update(_of_trainer(node, names))
        elif _CONFIG.search(called) and not called.startswith("BitsAndBytes"):
            if called == "LoraConfig":
                given[trl.PEFT] = called
            given.update({keyword.arg: _value(keyword.value, names) for keyword in node.keywords if keyword.arg})
            own = own or called.removesuffix("Config") + "Trainer" in _TRAINERS
            if called == trl.PLAIN:
                given[trl.ARGUMENTS] = called
        elif called == "BitsAndBytesConfig":
            given.update(
                {k.arg: _value(k.value, names) for k in node.keywords if k.arg and k.arg.startswith("load_in")}
            )
        elif (
            called == "from_pretrained"
            and node.args
            and "model" not in given
            and isinstance(owner, ast.Name)
            and re.search(r"Model|CausalLM", owner.id)
        ):
            given["model"] = _value(node.args[0], names)
    if own:  # the trainer has a configuration of its own
        given.pop(trl.ARGUMENTS, None)
    found = {key: value for key, value in given.items() if value is not _UNKNOWN}
    if not found:
        raise UserError(
            f"{path}: no configuration of a trainer", action="name a script with SFTConfig(...) or its like"
        )
    # what is computed stands in the account as its own text
    return {**found, **{key: COMPUTED for key, value in given.items() if value is _UNKNOWN}}


_UNKNOWN = object()

_SAVES = {
    "save_pretrained_merged": ("save_method", "merged_16bit"),
    "save_pretrained_gguf": ("quantization_method", "fast_quantized"),
}
"""Calls of Unsloth that write a model: the argument that says how, and its default."""


def _idle(tree: ast.AST) -> set[ast.AST]:
    """What stands below `if False:`, as notebooks show what could be done."""
    never = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Constant) and not node.test.value
    ]  # fmt: skip
    return {inside for node in never for one in node.body for inside in ast.walk(one)}


def _of_trainer(node: ast.Call, names: Mapping[str, ast.expr]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain = ("max_seq_length", "dataset_text_field", "packing", "dataset_num_proc", "beta", "max_length")
    for keyword in node.keywords:
        if keyword.arg in plain:
            found[keyword.arg] = _value(keyword.value, names)
        if keyword.arg == "model" and isinstance(_value(keyword.value, names), str):
            found["model"] = _value(keyword.value, names)
        if keyword.arg in ("train_dataset", "eval_dataset"):
            loaded = _loaded(keyword.value, names)
            if loaded and keyword.arg == "train_dataset":
                found.update(loaded)
    return found


def _loaded(node: ast.expr, names: Mapping[str, ast.expr]) -> dict[str, Any]:
    """Name, configuration and split of a `load_dataset(...)`."""
    split: Any = None
    followed: set[str] = set()
    while not (isinstance(node, ast.Call) and _called(node) == "load_dataset"):
        if isinstance(node, ast.Name) and node.id in followed:
            return {}  # two names, each made of the other
        if isinstance(node, ast.Name):
            followed.add(node.id)
        if isinstance(node, ast.Name) and node.id in names and names[node.id] is not node:
            node = names[node.id]
        elif isinstance(node, ast.Subscript):
            split, node = _value(node.slice, names), node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func.value  # .map(...), .select(...)
        else:
            return {}
    words = [_value(one, names) for one in node.args]
    found = {"dataset_name": words[0]} if words else {}
    if len(words) > 1:
        found["dataset_config"] = words[1]
    for keyword in sorted(node.keywords, key=lambda one: one.arg != "split"):
        if keyword.arg == "split":
            split = _value(keyword.value, names)
        if keyword.arg == "name":
            found["dataset_config"] = _value(keyword.value, names)
        if keyword.arg == "data_files":
            files = _value(keyword.value, names)
            paths = [] if files is _UNKNOWN or not words else rows.named(str(words[0]), files, str(split or "train"))
            if paths:
                found["dataset_name"] = paths if len(paths) > 1 else paths[0]
            else:
                found["data_files"] = files
    if isinstance(split, str):
        found["dataset_train_split"] = split
    return found


def _names(node: ast.expr, name: str) -> bool:
    return any(isinstance(inside, ast.Name) and inside.id == name for inside in ast.walk(node))


def _called(node: ast.Call) -> str:
    return (
        node.func.id
        if isinstance(node.func, ast.Name)
        else node.func.attr
        if isinstance(node.func, ast.Attribute)
        else ""
    )


def _value(node: ast.expr, names: Mapping[str, ast.expr], deep: int = 0) -> Any:
    """A plain value, followed through names; `_UNKNOWN` for what is computed."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Name) and node.id in names and deep < 8:
        return _value(names[node.id], names, deep + 1)
    return _UNKNOWN


__all__ = ["READERS", "TOOLS", "of_command", "of_notebook", "of_script", "of_yaml", "read", "tool_of"]
