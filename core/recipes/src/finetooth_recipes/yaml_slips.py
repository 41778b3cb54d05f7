"""Common mistakes in YAML, each with its remedy, since the parser's own messages do not help.

Some of them are valid YAML with another meaning: `{fraction:0.3}` has one key, `fraction:0.3`, without a value.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from finetooth_hooks.errors import RecipeError

CHECK = "check indentation, colons and quotes there"
INDENT = "begin settings of one level in the same column, those of a section further right"
_JOINED = re.compile(r"\s*(?:- )?(?P<key>[\w.-]+):(?P<value>[^\s:].*)")
"""A line without a space after its colon."""
_TWICE = re.compile(r"[^\s'\"{\[#][^'\"{\[#]*?: [^'\"{\[#]*?: ")
_WIDE = re.compile(r"(?m)(?:^|[{,])\s*(?:- )?(?P<key>[A-Za-z][A-Za-z0-9_.-]*)\s*\uff1a")
"""A key with the full-width colon of Chinese and Japanese keyboards."""
_TURNED_SPACES = re.compile("[\u00a0\u2000-\u200b\u202f\u3000]")
_TURNED_QUOTES = re.compile("[\u2018-\u201f]")


def not_yaml(error: yaml.MarkedYAMLError, text: str, source: str) -> RecipeError:
    """The error for text that is not YAML.

    Args:
        source: the name of the text in errors.
    """
    mark = error.problem_mark or error.context_mark
    problem, action = _explained(error, text)
    if mark is None:
        return RecipeError("", f"{source}: not valid YAML: {problem}", action=action)
    problem, action = _wide("\n".join(text.splitlines()[max(mark.line - 1, 0) : mark.line + 1])) or (problem, action)
    return RecipeError("", f"{source}:{mark.line + 1}: not valid YAML: {problem}", action=action)


def _explained(error: yaml.MarkedYAMLError, text: str) -> tuple[str, str]:
    """Problem and action for an error of PyYAML."""
    problem = error.problem or error.context or ""
    context = error.context or ""
    opened = "" if error.context_mark is None else f" that opens in line {error.context_mark.line + 1}"
    match = re.match(r"found character '(.+)' that cannot start any token", problem)
    if match and match[1] == "\\t":
        return "a tab, where YAML takes spaces only", "replace it by spaces"
    if match:
        return f"a text cannot begin with {match[1]}", "put quotes around the text"
    if "undefined alias" in problem:
        return problem.replace("found ", ""), "put quotes around a text that begins with *"
    if "unknown escape" in problem:
        return problem.replace("found ", ""), "use single quotes, in which \\ means nothing special"
    if "quoted scalar" in context and "unexpected end" in problem:
        return f"the quote{opened} is not closed", "close it"
    if "flow mapping" in context or "flow sequence" in context:
        bracket, shape = ("{", "{key: value, key: value}") if "mapping" in context else ("[", "[item, item]")
        return f"the {bracket}{opened} is not closed, or a comma is missing in it", f"write {shape}"
    if "another document" in problem:
        return "a second document begins", "keep one recipe, without a line ---"
    if problem.startswith("mapping values are not allowed"):
        return _second_colon(error.problem_mark, text)
    if "expected <block end>" in problem:
        extra = re.search(r"found '([}\])])'", problem)
        return (f"{extra[1]} closes nothing", "remove it") if extra else ("the indentation does not fit", INDENT)
    return problem, CHECK


def _second_colon(mark: Any, text: str) -> tuple[str, str]:
    """Problem and action for a colon at a wrong place."""
    lines = text.splitlines()
    here = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    before = next((line for line in reversed(lines[: mark.line]) if line.strip()), "") if mark is not None else ""
    joined = _JOINED.fullmatch(before)
    if joined:
        return f"the line before has no space behind its colon: {before.strip()}", _spaced(joined)
    if _TWICE.match(here.strip()):
        return (
            "two colons in one line",
            "write a section as SECTION: {key: value}, or its settings below it; put quotes around a text with a colon",
        )
    return "the indentation does not fit", INDENT


def check_key(key: str, *, plain: bool, lone: bool) -> tuple[str, str] | None:
    """Problem and action for a key that is valid in YAML; None if the key is right.

    Args:
        plain: it is not in quotes.
        lone: it is in braces and has no value.
    """
    if not plain:
        return None
    if _TURNED_SPACES.search(key):
        return f"the key {key!a} holds a space character that YAML does not know", "write an ordinary space"
    if _TURNED_QUOTES.match(key):
        return f"the key {key} has typographic quotes", "write it without quotes"
    if wide := _wide(key):
        return wide
    joined = _JOINED.fullmatch(key)
    if joined and (lone or joined["value"][0] in "{["):
        return f"no space behind the colon: {key}", _spaced(joined)
    if lone:
        return (
            f"the key {key} has no value",
            f"write {key}: VALUE, null for none; put quotes around a text with a comma, and a point in 1.5",
        )
    return None


def _wide(text: str) -> tuple[str, str] | None:
    key = _WIDE.search(text)
    return (f"the colon after {key['key']} is a full-width one", f"write {key['key']}: VALUE") if key else None


def _spaced(joined: re.Match[str]) -> str:
    rest = " ..." if joined["value"][0] in "{[" else ""
    return f"write {joined['key']}: {joined['value']}{rest}"


def instead(value: Any, *, wanted: set[str]) -> str:
    """The right spelling of a value with a wrong type for its setting; empty if unknown.

    Args:
        wanted: accepted types of the setting, in the words of messages.
    """
    if isinstance(value, float) and "a whole number" in wanted and value.is_integer() and abs(value) < 2**53:
        return f"write {int(value)}"
    if not isinstance(value, str):
        return ""
    text = value.strip().lower()
    if "true or false" in wanted and text in ("yes", "on", "y", "no", "off", "n"):
        return f"write {'true' if text in ('yes', 'on', 'y') else 'false'}"
    if wanted & {"a whole number", "a number"}:
        if text == "none":
            return "write null for none"
        if re.fullmatch(r"[-+]?[0-9]{1,3}(_?[0-9]{3})+(\.[0-9]+)?", text):
            return f"write {text.replace('_', '')}"
    joined = _JOINED.fullmatch(value) or re.fullmatch(r"(?P<key>\w[\w.-]*)\s*=\s*(?P<value>\S+)", value)
    return _spaced(joined) if wanted == {"a mapping"} and joined else ""
