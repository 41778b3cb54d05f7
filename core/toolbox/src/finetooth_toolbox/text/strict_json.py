"""JSON read strictly: every key once, every number finite. Errors are sentences."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_TYPES: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


TOO_DEEP = "objects are nested too deep"

_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALF_IN_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


class JsonProblem(ValueError):
    """The fault of a JSON text.

    Attributes:
        position: of the first wrong character; None if the text is JSON.
        unfinished: more text might fix it.
    """

    def __init__(self, problem: str, position: int | None = None, unfinished: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.position, self.unfinished = problem, position, unfinished


def type_name(value: Any) -> str:
    """JSON's name of a value's type, with its article."""
    return _TYPES.get(type(value), "a value")


def decode(text: str) -> Any:
    """The value of a whole text.

    Raises:
        JsonProblem: it is not JSON, nested too deep, has a key twice in one object or a number that is not finite.
    """
    return _strictly(lambda decoder: decoder.decode(text), text)


def decode_from(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at a character, and the index of its end; later text is not read.

    Raises:
        JsonProblem: see `decode`.
    """
    value_and_end: tuple[Any, int] = _strictly(lambda decoder: decoder.raw_decode(text, start), text)
    return value_and_end


def received(text: str | bytes, **how: Any) -> Any:
    """`json.loads` for an external text: from a client, a model's answer, a file.

    Args:
        how: the hooks of `json.loads`.

    Raises:
        JsonProblem: the text is not JSON, nested too deep, or holds half a character (a surrogate without its other
            half),
            which no tokenizer and no file takes.
    """
    try:
        value = json.loads(text, **how)
    except RecursionError as error:
        raise JsonProblem(TOO_DEEP) from error
    except JsonProblem:
        raise
    except ValueError as error:
        raise JsonProblem(str(error)) from error
    check_characters(text, value)
    return value


def check_characters(text: str | bytes, value: Any) -> None:
    """Check that no text in a value holds half a character.

    Args:
        text: the source text of the value: without a suspicious escape, nothing is checked.

    Raises:
        JsonProblem: a text holds half a character.
    """
    may = _HALF_IN_BYTES.search(text) if isinstance(text, bytes) else _HALF.search(text)
    waiting = [value] if may else []
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str) and _SURROGATE.search(part):
            raise JsonProblem("a text holds half a character (a surrogate without its other half)")


def _strictly(read: Callable[[json.JSONDecoder], Any], text: str) -> Any:
    strict = _Strict()
    decoder = json.JSONDecoder(
        object_pairs_hook=strict.object, parse_constant=strict.not_finite, parse_float=strict.finite
    )
    try:
        value = read(decoder)
    except json.JSONDecodeError as error:
        # the error of a truncated literal or escape is a few characters before the end
        unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(text) - 12
        raise JsonProblem(_syntax(text, error), error.pos, unfinished) from error
    except RecursionError as error:
        raise JsonProblem(TOO_DEEP) from error
    except ValueError as error:  # Python does not read integers of more than 4,300 digits
        raise JsonProblem("a whole number with thousands of digits") from error
    check_characters(text, value)
    if strict.problems:
        raise JsonProblem("; ".join(strict.problems))
    return value


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "not complete JSON (unexpected end)"
    return f"not JSON: {error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}"


class _NotFinite(float):
    """A placeholder for a number that is not finite, with its spelling, until its key is known."""

    spelling: str


class _Strict:
    """Hooks of the JSON decoder that collect faults which it would accept."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._named: list[str] = []

    @property
    def problems(self) -> list[str]:
        """The faults in words; a number that is not finite is named with its key, if it has one."""
        return self._named + [f"{spelling} is not a finite number" for spelling in self._found]

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                self._named.append(f"the key {key!r} occurs twice in one object")
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, _NotFinite):
                    self._found.remove(item.spelling)
                    self._named.append(f"{key!r} is {item.spelling}, not a finite number")
            values[key] = value
        return values

    def not_finite(self, spelling: str) -> float:
        self._found.append(spelling)
        number = _NotFinite("nan")
        number.spelling = spelling
        return number

    def finite(self, spelling: str) -> float:
        number = float(spelling)
        return self.not_finite(spelling) if math.isinf(number) else number
