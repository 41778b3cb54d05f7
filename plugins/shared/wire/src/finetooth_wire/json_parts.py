"""Read and write JSON in parts. Python's own reader and writer hold its lock from the first letter to the last one, and
every thread of a server waits for that. Here other threads may run between the parts. The parts are Python's own, and
the result is what `json` gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from finetooth_toolbox.text.strict_json import TOO_DEEP, JsonProblem, check_characters

PART = 2**17
"""Letters of a list of plain values that are read in one go, and bytes of a text that is."""

SIZES = (2**10, 2**14, PART)
"""Letters among which the end of a list or an object is looked for."""

VALUES = 2**14
"""Values that are written in one go."""

DEEPEST = 128
"""Lists and objects within each other."""

_BLANKS = re.compile(r"[ \t\n\r]*")
_CONTAINERS = (dict, list, tuple)
_KINDS = frozenset(_CONTAINERS)
_READER = json.JSONDecoder()


def loads(content: bytes) -> Any:
    """The result of `json.loads`.

    Raises:
        ValueError: the text is not JSON, or a number in it has too many digits.
        RecursionError: it is nested too deeply.
    """
    if len(content) <= PART:
        return json.loads(content)
    text = content.decode(json.detect_encoding(content), "surrogatepass")
    value, end = _value(text, _skip(text, 0), 0)
    end = _skip(text, end)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def received(content: bytes) -> Any:
    """`loads` for a client's text.

    Raises:
        JsonProblem: the text is not JSON, a number in it has too many digits, it is nested too deep, or it holds half a
            character.
    """
    try:
        value = loads(content)
    except RecursionError as error:
        raise JsonProblem(TOO_DEEP) from error
    except ValueError as error:
        raise JsonProblem(str(error)) from error
    check_characters(content, value)
    return value


def dumps(value: Any, *, allow_nan: bool = True) -> bytes:
    """`json.dumps` without blanks.

    Args:
        allow_nan: as there.

    Raises:
        TypeError: a value has no form in JSON.
        ValueError: it holds a number that is not finite, and none are allowed.
    """
    write = json.JSONEncoder(separators=(",", ":"), allow_nan=allow_nan).encode
    return "".join(_pieces(value, write)).encode()


# --- reading ----------------------------------------------------------------------------------------------------------


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return at if blanks is None else blanks.end()


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at a place, and where it ends."""
    if text[at : at + 1] not in ("{", "["):
        return _READER.raw_decode(text, at)
    for size in SIZES:  # most lists and objects are short: those are read as they are
        try:
            parsed, length = _READER.raw_decode(text[at : at + size])
        except ValueError:
            if at + size >= len(text):
                break
        else:
            return parsed, at + length
    if depth > DEEPEST:
        raise RecursionError(f"JSON of more than {DEEPEST} levels")
    return _object(text, at, depth) if text[at] == "{" else _list(text, at, depth)


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    content: dict[str, Any] = {}
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return content, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _READER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        content[name], at = _value(text, _skip(text, at + 1), depth + 1)
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return content, at + 1
        at = _after_comma(text, at)


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    end = text.find("]", at)
    if end > 0 and all(text.find(sign, at + 1, end) < 0 for sign in '[{"'):
        return _plain_list(text, at + 1, end), end + 1
    values: list[Any] = []
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return values, at + 1
    while True:
        value, at = _value(text, at, depth + 1)
        values.append(value)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return values, at + 1
        at = _after_comma(text, at)


def _after_comma(text: str, at: int) -> int:
    if text[at : at + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    return _skip(text, at + 1)


def _plain_list(text: str, begin: int, end: int) -> list[Any]:
    """Values without texts, lists and objects among them, between two brackets."""
    values: list[Any] = []
    start = begin
    while True:
        cut = end if end - start <= PART else text.rfind(",", start, start + PART)
        if cut < 0:  # one value of so many letters
            cut = text.find(",", start, end)
            cut = end if cut < 0 else cut
        try:
            part = json.loads(f"[{text[start:cut]}]")
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start + error.pos - 1) from error
        if not part and (start > begin or cut < end):
            raise json.JSONDecodeError("Expecting value", text, cut)
        values += part
        if cut == end:
            return values
        start = cut + 1


# --- writing ----------------------------------------------------------------------------------------------------------


def _count(value: Any) -> int:
    """Values in a value, its names among them; one that has more than `VALUES` is not counted to its end."""
    if not isinstance(value, _CONTAINERS):
        return 1
    inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
    count = len(value) * (2 if isinstance(value, dict) else 1)
    if count <= VALUES:
        for inner in inside:
            if isinstance(inner, _CONTAINERS):
                count += _count(inner)
                if count > VALUES:
                    break
    return count


def _pieces(value: Any, write: Callable[[Any], str]) -> Iterator[str]:
    if _count(value) <= VALUES or not isinstance(value, _CONTAINERS):
        yield write(value)
    elif isinstance(value, dict):
        for n, (name, inner) in enumerate(value.items()):
            yield f"{',' if n else '{'}{write({name: 0})[1:-2]}"
            yield from _pieces(inner, write)
        yield "}"
    else:
        yield "["
        for n, part in enumerate(_parts(value)):
            if n:
                yield ","
            if len(part) == 1:
                yield from _pieces(part[0], write)
            else:
                yield write(part)[1:-1]
        yield "]"


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Stretches of `VALUES` values, or one element that has more."""
    for begin in range(0, len(values), VALUES):
        part, start, count = values[begin : begin + VALUES], 0, 0
        if not _KINDS.isdisjoint(map(type, part)):
            for n, inner in enumerate(part):
                more = _count(inner)
                if n > start and count + more > VALUES:
                    yield part[start:n]
                    start, count = n, 0
                count += more
        yield part[start:]
