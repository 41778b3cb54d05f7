"""One line of JSON: strictly one object, each key once, every number finite."""

from __future__ import annotations

from typing import Any

from finetooth_toolbox.text.strict_json import JsonProblem, decode, type_name

REMOVE = "fix or remove the broken lines"


class BrokenLine(ValueError):
    """The fault of a line, and the next action."""

    def __init__(self, line: int, problem: str, action: str = REMOVE) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line, self.problem, self.action = line, problem, action


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
    try:
        value = decode(text)
    except JsonProblem as error:
        raise BrokenLine(line, error.problem) from error
    if not isinstance(value, dict):
        raise BrokenLine(line, f"{type_name(value)}, not an object", "write one JSON object a line")
    return value
