"""One line of JSON: strictly one object, each key once, every number finite."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[type, str] = {
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}
REMOVE = "fix or remove the broken lines"


class BrokenLine(ValueError):
    """What is wrong with a line, and what to do."""

    def __init__(self, line: int, problem: str, action: str = REMOVE) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line, self.problem, self.action = line, problem, action


class _NotFinite(float):
    """Stands for a number that is none until the key that holds it is known; remembers its spelling."""

    spelling: str


def parse(content: bytes, line: int, offset: int) -> dict[str, Any]:
    """The object on a line.

    Args:
        content: the line, with or without its line feed; `\\r\\n` is fine.
        line: its number, from 1.
        offset: of its first byte in the file, for messages.

    Raises:
        BrokenLine: not UTF-8, a lone carriage return, not JSON, not an object, a key twice, a number not finite.
    """
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    if b"\r" in content:
        raise BrokenLine(line, "a carriage return inside the line", "end every line with a line feed (LF)")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise BrokenLine(
            line, f"not UTF-8: byte 0x{byte:02x} at offset {offset + error.start}", "convert the file to UTF-8"
        ) from error
    strict = _Strict()
    try:
        value = json.loads(
            text, object_pairs_hook=strict.object, parse_constant=strict.not_finite, parse_float=strict.finite
        )
    except json.JSONDecodeError as error:
        raise BrokenLine(line, _syntax(text, error)) from error
    except RecursionError as error:
        raise BrokenLine(line, "objects are nested too deep") from error
    if strict.problems:
        raise BrokenLine(line, "; ".join(strict.problems))
    if not isinstance(value, dict):
        raise BrokenLine(line, f"{_TYPES.get(type(value), 'a number')}, not an object", "write one JSON object a line")
    return value


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "not complete JSON (unexpected end)"
    return f"not JSON: {error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}"


class _Strict:
    """Hooks of the JSON decoder that collect what it would let pass."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._named: list[str] = []

    @property
    def problems(self) -> list[str]:
        """In words; a number that is none is named with its key where it has one."""
        bare = [f"{spelling} is not a finite number" for spelling in self._found]
        return self._named + bare

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
