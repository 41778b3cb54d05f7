"""The words of a shell script's commands, as far as they can be told without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from finetooth_hooks import UserError

from finetooth_importer.account import COMPUTED

_ASSIGNED = re.compile(r"\s*(?:export\s+|declare\s+(?:-\w+\s+)*|local\s+)?([A-Za-z_]\w*)=(.*)$")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<otherwise>[^${}]*))?\}|(?P<bare>\w+))")
_PUNCTUATION = frozenset("();<>|&")


def commands(text: str, path: Path) -> list[list[str]]:
    """The words of each command, in order: lines that are continued are one, comments in them are left out, and so is
    where output goes. Variables that the script sets stand as their values; a word with others, or with what a command
    would print, is `(computed)`.

    Raises:
        UserError: a quotation does not end.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(re.sub(r"\\\s*(#.*)?$", r"\\", line) for line in lines).replace("\\\n", " ")
    known: dict[str, str] = {}
    parsed: list[list[str]] = []
    for line in whole.splitlines():
        try:
            assigned = _ASSIGNED.match(line)
            if assigned and len(value := shlex.split(assigned[2], comments=True)) <= 1:
                known[assigned[1]] = _filled("".join(value), known)
                continue
            parsed += [[_filled(word, known) for word in words] for words in _parted(line)]
        except ValueError as error:
            raise UserError(f"{path}: {error}", action="close the quotes") from None
    return parsed


def _parted(line: str) -> list[list[str]]:
    """The commands of a line, without redirections.

    Raises:
        ValueError: a quotation does not end.
    """
    lexer = shlex.shlex(re.sub(r"(?<=\s)\d?>&\d|(?<=\s)\d(?=>)", " ", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parsed: list[list[str]] = [[]]
    target = False
    for word in lexer:
        if word and set(word) <= _PUNCTUATION:
            target = word[0] in "<>" or word.startswith("&>")
            if not target:
                parsed.append([])
        elif target:
            target = False
        else:
            parsed[-1].append(word)
    return [words for words in parsed if words]


def _filled(word: str, known: Mapping[str, str]) -> str:
    if "$(" in word or "`" in word:
        return COMPUTED
    missing = False

    def put(match: re.Match[str]) -> str:
        nonlocal missing
        name = match["braced"] or match["bare"]
        value = known.get(name, match["otherwise"])
        missing = missing or value is None or value == COMPUTED
        return value or ""

    made = _VARIABLE.sub(put, word)
    return COMPUTED if missing or ("$" in made and re.search(r"\$[\w{@*#]", made)) else made


class PlainLoader(yaml.SafeLoader):
    """YAML whose dates stay the texts that they are: no setting of a tool is one."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """What a YAML text holds, read as `PlainLoader` does.

    Raises:
        yaml.YAMLError: it is none.
    """
    loader = PlainLoader(text)
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deeply") from None
    finally:
        loader.dispose()


def value_of(word: str) -> Any:
    """What stands behind a flag: a number, a truth value, a list, a mapping, or the text itself."""
    if not word.strip():
        return word
    try:
        made = read_yaml(word)
    except yaml.YAMLError:
        return word
    return word if made is None or (":" in word and isinstance(made, int | float)) else made
