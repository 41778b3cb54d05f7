"""How a template writes calls of tools, learned from what it makes of two, so that completions are read the same way.

Templates differ in what stands around a call (`<tool_call>`, `[TOOL_CALLS]`, nothing) and in what a call is: one JSON
value with name and arguments or a list of them, a name before the JSON of its arguments or before Gemma 4's notation of
them, or tags as Qwen3-Coder, GLM or Muse have them. A reader is made of each and kept if it reads the template's own
calls back, as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import Message
from finetooth_rendering.bare_values import QUOTE, end_of_arguments, read_arguments
from finetooth_rendering.tool_calls import call_of, tagged_calls

from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

Call = Mapping[str, Any]
Reader = Callable[[str], tuple[str, tuple[Call, ...]]]
"""Of what an answer says, the content and the calls; a text without calls, or with broken ones, is all content."""

Value = tuple[list[Call], int]
"""Calls that stand at a character, and where they end."""

ValueAt = Callable[[str, int], Value | None]

_NAMES = ("look_up", "book_trip")
_ARGUMENTS: tuple[dict[str, Any], ...] = ({"place": "Oslo", "days": 2}, {"when": "May"})
_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in arguments.items()
                },
            },
        },
    }
    for name, arguments in zip(_NAMES, _ARGUMENTS, strict=True)
)
_CALLS: tuple[Call, ...] = tuple(
    {**call_of(name, arguments), "id": f"abcdefgh{i}"}
    for i, (name, arguments) in enumerate(zip(_NAMES, _ARGUMENTS, strict=True))
)
_QUESTION = Message("user", "Where?")
_XML = re.compile(r"<function=([^>\n]+)>\s*((?:<parameter=[^>\n]+>\n.*?\n</parameter>\s*)*)</function>", re.DOTALL)
_KEYED = re.compile(
    r"([^\n<>]+)\n((?:<arg_key>[^<>]+</arg_key>\n<arg_value>.*?</arg_value>\n)*?)(?=</tool_call>)", re.DOTALL
)
_KEY = re.compile(r"<arg_key>([^<>]+)</arg_key>\n<arg_value>(.*?)</arg_value>\n", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>", re.DOTALL)
_ATTRIBUTE = re.compile(r"""<(?:[\w-]+:)?parameter name="([^"\n]+)">(.*?)</(?:[\w-]+:)?parameter>\s*""", re.DOTALL)
_INVOKED = re.compile(
    rf"""<(?:[\w-]+:)?invoke name="([^"\n]+)">\s*((?:{_ATTRIBUTE.pattern})*)</(?:[\w-]+:)?invoke>""", re.DOTALL
)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Learned:
    """What a template does with calls.

    Attributes:
        writes: it writes them down.
        read: reads them; None if it writes none, or in a way that no reader knows.
    """

    writes: bool = False
    read: Reader | None = None


def learned(shaper: Shaper, said_of: Callable[[str, str], str]) -> Learned:
    """Render calls and look how they can be read.

    Args:
        said_of: what an answer says, as `parse` gives it to the reader; of a prompt, and of it with the answer.
    """
    single, double = (_answer_text(shaper, _CALLS[:count], said_of) for count in (1, 2))
    if single is None or _NAMES[0] not in single:
        return Learned()
    if double is not None and _NAMES[1] not in double:
        double = None  # it writes the first call of a message, and drops the others
    for value in (_json_value, _named_value, _xml_value, _keyed_value, _braced_value, _invoked_value):
        for begin, end in _frames(single, value):
            between = None if double is None else _between(double, value, begin)
            for reader in _readers(value, begin, between, end):
                if _same(reader(single), _CALLS[:1]) and (double is None or _same(reader(double), _CALLS)):
                    return Learned(True, reader)
    return Learned(True)


def _answer_text(shaper: Shaper, calls: Sequence[Call], said_of: Callable[[str, str], str]) -> str | None:
    """The answer that makes these calls; None if the template refuses it."""
    answer = Message("assistant", "", tool_calls=tuple(calls))
    try:
        prompt = shaper.render((_QUESTION,), _TOOLS, prompt=True).text
        return said_of(prompt, shaper.render((_QUESTION, answer), _TOOLS).text)
    except TemplateRefused:
        return None


def _same(read: tuple[str, tuple[Call, ...]], calls: Sequence[Call]) -> bool:
    content, parsed = read
    return not content.strip() and _functions(parsed) == _functions(calls)


def _functions(calls: Sequence[Call]) -> list[Any]:
    return [call["function"] for call in calls]


# --- what stands around calls -----------------------------------------------------------------------------------------


def _frames(text: str, value: ValueAt) -> Iterator[tuple[str, str]]:
    """What stands before and behind the first call in a text, for each place where it can be read."""
    for at in range(len(text)):
        decoded = value(text, at)
        if decoded is not None and _functions(decoded[0]) == _functions(_CALLS[:1]):
            yield text[:at], text[decoded[1] :]


def _between(text: str, value: ValueAt, begin: str) -> str | None:
    """What stands between two calls; None if they are one value."""
    first = value(text, len(begin)) if text.startswith(begin) else None
    if first is None or len(first[0]) > 1:
        return None
    for at in range(first[1], len(text)):
        second = value(text, at)
        if second is not None and _functions(second[0]) == _functions(_CALLS[1:]):
            return text[first[1] : at]
    return None


def _readers(value: ValueAt, begin: str, between: str | None, end: str) -> Iterator[Reader]:
    opening, closing = begin.strip(), end.strip()
    if not opening and value is not _json_value:
        return  # any text could be a call
    if value is _json_value and opening and closing:  # allows for text between calls

        def tagged(text: str) -> tuple[str, tuple[Call, ...]]:
            return tagged_calls(text, opening, closing)

        yield tagged
    patterns = [None if text is None else _with_any_name(text.strip()) for text in (opening, between, closing)]
    yield _Frame(value, *patterns)  # type: ignore[arg-type]


def _with_any_name(text: str) -> re.Pattern[str]:
    """The markup itself, but for the names of the two tools, in whose places any may stand (`to=clock`)."""
    pattern = re.escape(text)
    for name in _NAMES:
        pattern = pattern.replace(re.escape(name), _NAME.pattern)
    return re.compile(pattern)


@dataclass(frozen=True)
class _Frame:
    """Reads calls with something before them, between them and behind them; blanks around it count for nothing."""

    value: ValueAt
    begin: re.Pattern[str]
    between: re.Pattern[str] | None
    end: re.Pattern[str]

    def __call__(self, text: str) -> tuple[str, tuple[Call, ...]]:
        opening = self.begin.search(text)
        if opening is None:
            return text, ()
        content, at = text[: opening.start()], opening.end()
        calls: list[Call] = []
        while (decoded := self.value(text, _after_blanks(text, at))) is not None:
            calls += decoded[0]
            at = _after_blanks(text, decoded[1])
            between = None if self.between is None else self.between.match(text, at)
            if between is None or self.value(text, _after_blanks(text, between.end())) is None:
                break
            at = between.end()
        if not calls or not self.end.fullmatch(text[at:].strip()):
            return text, ()
        return content.removesuffix("\n"), tuple(calls)


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


# --- what a call is ---------------------------------------------------------------------------------------------------


def _json_value(text: str, at: int) -> Value | None:
    """`{"name": ..., "arguments": {...}}`, or a list of such."""
    if text[at : at + 1] not in ("{", "["):
        return None
    value, end = _decode_json(text, at)
    calls = [_call(element) for element in value] if isinstance(value, list) else [_call(value)]
    valid = [call for call in calls if call is not None]
    return (valid, end) if valid and len(valid) == len(calls) else None


def _named_value(text: str, at: int) -> Value | None:
    """A name, markup, and the arguments as JSON: `clock[ARGS]{"zone": "UTC"}`."""
    name = _NAME.match(text, at)
    if name is None or (at and re.match(r"\w", text[at - 1])):
        return None
    brace = text.find("{", name.end())
    if brace < 0 or not re.fullmatch(r"\s*[^\w\s][^{}]*", text[name.end() : brace], re.DOTALL):
        return None
    arguments, end = _decode_json(text, brace)
    return ([call_of(name.group(), arguments)], end) if isinstance(arguments, dict) else None


def _xml_value(text: str, at: int) -> Value | None:
    """`<function=clock>`, and a `<parameter=zone>` for each argument."""
    match = _XML.match(text, at)
    if match is None:
        return None
    arguments = {key: _plain(value) for key, value in _PARAMETER.findall(match[2])}
    return [call_of(match[1], arguments)], match.end()


def _keyed_value(text: str, at: int) -> Value | None:
    """A name on a line, and on the next ones `<arg_key>zone</arg_key>` and `<arg_value>UTC</arg_value>`."""
    match = _KEYED.match(text, at)
    if match is None:
        return None
    return [call_of(match[1], {key: _plain(value) for key, value in _KEY.findall(match[2])})], match.end()


def _braced_value(text: str, at: int) -> Value | None:
    """A name and its arguments in braces, keys bare and texts between tokens: `clock{zone:<|"|>UTC<|"|>}`."""
    name = _NAME.match(text, at)
    if name is None or not text.startswith("{", name.end()) or (at and re.match(r"\w", text[at - 1])):
        return None
    end = end_of_arguments(text, name.end())
    values = None if end is None else read_arguments(text[name.end() : end].split(QUOTE))
    return None if values is None or end is None else ([call_of(name.group(), values)], end)


def _invoked_value(text: str, at: int) -> Value | None:
    """`<invoke name="clock">`, and a `<parameter name="zone">` for each argument, with any prefix of the tags."""
    match = _INVOKED.match(text, at)
    if match is None:
        return None
    return [call_of(match[1], {key: _plain(value) for key, value in _ATTRIBUTE.findall(match[2])})], match.end()


def _plain(text: str) -> Any:
    """The text of a value: JSON for anything but text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _decode_json(text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at


def _call(value: Any) -> Call | None:
    """A JSON object as a call; its id is kept."""
    if not isinstance(value, dict):
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    name, id_ = value.get("name"), value.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict) or len(value) > 2 + (id_ is not None):
        return None
    return {**({"id": id_} if isinstance(id_, str) else {}), **call_of(name, arguments)}
