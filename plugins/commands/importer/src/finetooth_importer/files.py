"""Another tool's file: YAML, JSON, a command line, or a Python script that is read and never run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from finetooth_hooks import UserError

from finetooth_importer import script, shell
from finetooth_importer.tools import (
    accelerate,
    autotrain,
    axolotl,
    corpus_recipe,
    llamafactory,
    mlxlm,
    mudpuppy,
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
    "corpus-recipe": corpus_recipe,
    "trl": trl,
    "accelerate": accelerate,
}
"""The tools, in the order in which it is asked whose keys they are."""

TOOLS = tuple(sorted(READERS))

_PROGRAMS = {
    "mlx_lm.lora": "mlx-lm",
    "mlx_lm": "mlx-lm",
    "autotrain": "autotrain",
    "llamafactory-cli": "llamafactory",
    "train_bash": "llamafactory",
}
"""Programs whose flags are their tool's, however few there are."""

_FLAG = re.compile(r"--?[A-Za-z][\w.-]*(=.*)?$")


def read(path: Path) -> tuple[Mapping[str, Any], str]:
    """The keys of a file.

    Returns:
        Keys and values, and the tool whose file it is; empty if that cannot be told.

    Raises:
        UserError: no such file, none that can be read, or one without keys.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xlsx", ".ods") and path.is_file():
        raise UserError(f"{path} holds rows, not a configuration", action=f"ft init --data {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no file {path}", action="name the other tool's configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as text: {error}", action="name the other tool's configuration"
        ) from None
    if path.suffix == ".ipynb":
        keys = script.of_script(of_notebook(text, path), path)
    elif path.suffix == ".py":
        keys = script.of_script(text, path)
    elif path.suffix in (".sh", ".bash", ".txt", ".cmd") or re.match(
        r"\s*(trl|llamafactory-cli|axolotl|accelerate|python3?|mud-puppy|autotrain|tune|unsloth|mlx_lm\.lora)\s", text
    ):
        keys, program = of_command(text, path)
        return keys, program or tool_of(keys)
    else:
        keys = of_yaml(text, path)
    return keys, tool_of(keys)


def tool_of(keys: Mapping[str, Any]) -> str:
    """The tool whose keys these are; empty if that cannot be told."""
    return next((name for name, module in READERS.items() if module.looks_like(keys)), "")


def of_yaml(text: str, path: Path) -> Mapping[str, Any]:
    """Keys of a YAML or JSON file.

    Raises:
        UserError: it is neither, or no mapping.
    """
    try:
        content = json.loads(text) if path.suffix == ".json" else shell.read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{place}: {getattr(error, 'problem', '') or 'not YAML'}", action="correct the line"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", action="correct it, or name another file") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} has no keys", action="name a file with a mapping of settings")
    return {str(key): value for key, value in content.items()}


def of_command(text: str, path: Path) -> tuple[Mapping[str, Any], str]:
    """Flags of the last command of a text whose lines may be continued, and the tool whose program it is; empty if its
    flags have to show it.

    Raises:
        UserError: there are none.
    """
    for words in reversed(shell.commands(text, path)):
        keys: dict[str, Any] = {}
        for place, word in enumerate(words):
            if (
                word in ("sft", "dpo", "kto", "grpo", "reward", "rloo", "orpo", "cpo")
                and place
                and words[place - 1] == "trl"
            ):
                keys[trl.METHOD] = word
            script = re.search(r"(sft|dpo|kto|orpo|cpo|grpo|rloo|gkd|reward\w*|prm)\.py$", word)
            if script and not keys:
                keys[trl.METHOD] = re.sub(r"_.*|modeling", "", script[1])
        keys |= _marked(words)
        flags = _flags(words)
        if flags or mudpuppy.MARK in keys:
            return {**keys, **flags}, next((_PROGRAMS[word] for word in map(_bare, words) if word in _PROGRAMS), "")
    raise UserError(f"{path}: no command with --settings", action="name a file with the command, or the tool's YAML")


def _bare(word: str) -> str:
    """A program's name without its folder."""
    return word.rpartition("/")[2].removesuffix(".py")


def _marked(words: list[str]) -> dict[str, Any]:
    """The settings among the words of a command, and whose command it is; mud-puppy's model and rows need no flag."""
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
    flags: dict[str, Any] = {}
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
        made = [shell.value_of(text) for text in values]
        flags[name.replace("-", "_")] = True if not made else made[0] if len(made) == 1 else made
    return flags


def of_notebook(text: str, path: Path) -> str:
    """The code of a notebook's cells, without the lines that are for the notebook or a shell.

    Raises:
        UserError: the file is not a notebook.
    """
    try:
        cells = json.loads(text)["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a notebook", action="name another file") from None
    return "\n".join(cell for cell in code if not cell.lstrip().startswith("%%"))
