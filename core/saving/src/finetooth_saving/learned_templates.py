"""Makes chat templates for models that learned another markup than their base's: a renderer's markup as Jinja.

A renderer is code, and other tools read templates. The code here renders marked pieces of a conversation (a question,
the name of a call, its arguments, a result), learns the text between two pieces, and makes a template that writes the
same text between the pieces of any conversation. The template is used only if it gives the renderer's own tokens for
whole conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetooth_hooks.data.examples import Conversation, Message
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_toolbox.messages.openings import NONE, Opening
from finetooth_toolbox.messages.written_templates import CALLING, gives_the_same, literal

BODY = (Path(__file__).parent / "learned.jinja").read_text(encoding="utf-8").removesuffix("\n")
KINDS = {"system": "system", "user": "user", "assistant": "answer", "tool": "result"}
"""The kind of piece of a message by its role; an assistant's message with calls has several pieces."""

PLAIN, SYSTEM = ("u", "uau", "uu", "uaau"), ("su", "suau")
"""Shapes of the rendered conversations, a letter per message: System, User, Answer; with tools also a Call, two Calls
(C), Text next to a call, a call with Empty arguments, the Result of a call."""
CALLED = ("ucr", "uCrr", "utr", "ucru", "ucrcr", "ucrtr", "utrtr", "uer", "uerau", "uaucr", "uauCrr", "uautr",
          "ucrau", "uCrrau", "utrau", "ucrcrau", "ucrtrau", "utrtrau")  # fmt: skip
ENDED, ENDED_CALLED = ("ua", "uaua", "u", "uau"), ("uc", "uC", "ut", "ue", "ucr", "ucra", "uaucra")
"""Shapes of conversations without a prompt at their end."""


def template_of(renderer: Renderer, tokenizer: Tokenizer, opening: Opening = NONE) -> str | None:
    """A chat template that gives the renderer's tokens: its own, that of the tokenizer, or one that is learned here;
    None if none does.

    Args:
        opening: the beginning of conversations without a system message.
    """
    head = _with_system(opening.system) if opening.system else ""
    for source in (renderer.template, tokenizer.chat_template):
        if source and gives_the_same(head + source, renderer, tokenizer, opening):
            return head + source
    for system, tools in ((True, True), (False, True), (True, False), (False, False)):
        try:
            source = _Learner(renderer, tokenizer).template(system=system, tools=tools)
        except DataError:  # the markup lacks tools or a system message, or more than the neighbours matters
            continue
        if gives_the_same(head + source, renderer, tokenizer, opening, calling=CALLING if tools else ()):
            return head + source
    return None


def _with_system(text: str) -> str:
    """Jinja that adds a system message to conversations without one."""
    message = literal({"role": "system", "content": text})
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}{% set messages = [" + message + "] + messages %}"
        "{% endif %}"
    )


def _json(value: Any, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


def _tool(name: str, about: str = "It helps.") -> Mapping[str, Any]:
    described = {"name": name, "description": about, "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": described}


TOOLS = (_tool("alphatool"), _tool("betatool"))
QUOTED = _tool("gammatool", 'It is "quoted".')
_FUNCTION = "(tool['function'] or tool)"
DESCRIBED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "tool | tojson": _json,
    f"{_FUNCTION} | tojson": lambda tool: _json(tool["function"]),
    "tool | tojson(indent=4)": lambda tool: _json(tool, indent=4),
    f"{_FUNCTION} | tojson(indent=4)": lambda tool: _json(tool["function"], indent=4),
}
"""Descriptions of a tool, as Jinja."""
CUTS: Mapping[str, Callable[[str], str]] = {
    "X": str,
    "X.strip()": str.strip,
    "X.lstrip()": str.lstrip,
    "X.rstrip()": str.rstrip,
    "(X | tojson)[1:-1]": lambda text: _json(text)[1:-1],
}
"""Treatments of a content X, as Jinja."""


def _call(number: int, *, empty: bool = False) -> Mapping[str, Any]:
    arguments = {} if empty else {"thing": f"ARGUMENT{number}", "yes": True, "other": f"VALUE{number}"}
    name = TOOLS[number % 2]["function"]["name"]
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _talk(shape: str) -> tuple[Message, ...]:
    """The messages of a shape's letters, each with a unique content."""
    messages: list[Message] = []
    open_calls: list[Mapping[str, Any]] = []
    for place, letter in enumerate(shape):
        if letter == "r":
            call = open_calls.pop(0)
            own = {"name": call["function"]["name"], "tool_call_id": call["id"]}
            messages.append(Message("tool", f"RESULT{place}.", **own))
        elif letter in "cCte":
            open_calls = [_call((2 * place + k) % 10, empty=letter == "e") for k in range(1 + (letter == "C"))]
            messages.append(Message("assistant", f"TEXT{place}." * (letter == "t"), tool_calls=tuple(open_calls)))
        else:
            role = {"s": "system", "u": "user", "a": "assistant"}[letter]
            messages.append(Message(role, f"{role.upper()}{place}."))
    return tuple(messages)


@dataclass
class _Learner:
    """Learns the text between pieces.

    Attributes:
        edges: the text between two pieces, by their kinds. It may differ after the last question (`late`), and in a
            conversation without a prompt at its end (`last`).
        described: the description of tools; empty without one.
        escapes: quotes in a tool's description are escaped; otherwise a template refuses such a tool.
        call: the pieces of a call in order; `items` are arguments one by one.
        as_json: values in `items` that are not text are JSON, not `True` or `None`.
        result: the pieces of a result.
        early: system message and tools, if they precede the conversation, in order; others precede its last question.
    """

    renderer: Renderer
    tokenizer: Tokenizer
    edges: dict[str, str] = field(default_factory=dict)
    described: str = ""
    escapes: bool = True
    call: tuple[str, ...] = ()
    as_json: bool = True
    result: tuple[str, ...] = ("content",)
    early: tuple[str, ...] = ("system", "tools")
    late: tuple[str, ...] = ()

    def template(self, *, system: bool, tools: bool) -> str:
        """Returns the renderer's markup as a chat template in Jinja.

        Raises:
            DataError: a template cannot express the renderer's markup.
        """
        if system:
            self._place("suau", (), {"system": "SYSTEM0."})
        if tools:
            self._look_at_tools(system)
        cuts = {"user": self._cut("u", 0), "answer": self._cut("uau", 1)}
        self._learn(PLAIN, ENDED)
        if system:
            cuts |= {"system": self._cut("su", 0), "asked": self._cut("su", 1)}
            self._learn(SYSTEM, [f"s{shape}" for shape in ENDED])
        if tools:
            cuts |= {"text": self._cut("utr", 1, TOOLS), "result": self._cut("ucr", 2, TOOLS)}
            for some in (TOOLS[:1], TOOLS):
                for start in ("", "s")[: 1 + system]:
                    shapes = [start + shape for shape in (*PLAIN, *CALLED)]
                    self._learn(shapes, [start + shape for shape in (*ENDED, *ENDED_CALLED)], some)
        return self._written(cuts, tools=tools)

    def _text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, ask: bool = True) -> str:
        if ask:
            return self.tokenizer.decode(self.renderer.prompt(messages, tools))
        return self.tokenizer.decode(self.renderer.render(Conversation(tuple(messages), tuple(tools))).tokens)

    def _look_at_tools(self, system: bool) -> None:
        """Learn the description and place of tools, and the pieces of calls and results."""
        text = self._text(_talk("u"), TOOLS[:1])
        self.described = next((expression for expression, write in DESCRIBED.items() if write(TOOLS[0]) in text), "")
        if not self.described and text != self._text(_talk("u")):
            raise DataError("tools", "they are described in a way of their own")
        if self.described:
            self.escapes = DESCRIBED[self.described](QUOTED) in self._text(_talk("u"), (QUOTED,))
            marks = {"tools": DESCRIBED[self.described](TOOLS[0])}
            self._place("suau" if system else "uau", TOOLS[:1], {**({"system": "SYSTEM0."} if system else {}), **marks})
        messages = _talk("ucr")
        call = messages[1].tool_calls[0]
        behind = self._text(messages, TOOLS).partition(messages[0].content)[2]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        whole = _json(arguments) in behind
        first, last = (_json(arguments),) * 2 if whole else (next(iter(arguments)), [*arguments.values()][-1])
        cut = behind.find(last, behind.find(first)) + len(last)
        self.as_json = "True" not in behind
        pieces = {"id": call["id"], "name": name, "arguments" if whole else "items": first}
        places = {kind: behind.find(value) for kind, value in pieces.items()}
        if places["name"] < 0 or places.get("items", 0) < 0:
            raise DataError("tools", "calls are written in a way of their own")
        own = {"content": messages[2].content, "name": name, "tool_call_id": call["id"]}
        if call["id"] in behind and places["id"] > places["name"] and "RESULT" not in behind[: places["id"]]:
            cut = max(cut, places["id"] + len(call["id"]))
        elif places["id"] > cut:
            places["id"] = -1
        self.call = tuple(sorted((kind for kind in places if places[kind] >= 0), key=places.__getitem__))
        places = {kind: behind.find(value, cut) for kind, value in own.items()}
        self.result = tuple(sorted((kind for kind in places if places[kind] >= 0), key=places.__getitem__))

    def _place(self, shape: str, tools: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> None:
        """Learn the places of the system message and the tools."""
        text = self._text(_talk(shape), tools)
        order = sorted(marks, key=lambda kind: text.find(marks[kind]))
        answer = text.find(_talk(shape)[-2].content)
        self.early = tuple(kind for kind in order if text.find(marks[kind]) < answer)
        self.late = tuple(kind for kind in order if kind not in self.early)

    def _learn(self, asked: Sequence[str], ended: Sequence[str], tools: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        Raises:
            DataError: the text between two pieces depends on more than these pieces.
        """
        for shape, ask in (*((shape, True) for shape in asked), *((shape, False) for shape in ended)):
            messages = _talk(shape)
            try:
                text = self._text(messages, tools, ask=ask)
            except DataError:
                continue  # neither the markup nor the template has a place for it
            at, last = 0, "tooled" if tools else "start"
            for when, kind, value in self._pieces(messages, tools, ask=ask):
                place = text.find(value, at) if value else len(text)
                edge = f"{when}{last} {kind}"
                if place < 0 or self.edges.setdefault(edge, text[at:place]) != text[at:place]:
                    raise DataError(shape, f"{edge} is not always the same")
                at, last = place + len(value), kind

    def _pieces(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, ask: bool
    ) -> Iterator[tuple[str, str, str]]:
        """Position (`late `, `last ` or empty), kind and text of each piece, and finally of the prompt or the end."""
        question = max(place for place, message in enumerate(messages) if message.role == "user")
        first = {"tools": [("tool", DESCRIBED[self.described](tool)) for tool in tools if self.described]}
        if messages[0].role == "system":
            first["system"] = [("system", messages[0].content)]
        yield from (("", *piece) for kind in self.early for piece in first.get(kind, ()))
        for place, message in enumerate(messages):
            if message.role == "system":
                continue
            if place == question:
                yield from (("", *piece) for kind in self.late for piece in first.get(kind, ()))
            when = "late " if place > question else ""
            when = "last " if place == len(messages) - 1 and not ask else when
            yield from ((when, *piece) for piece in self._of(message))
        yield "late ", "ask" if ask else "end", ""

    def _of(self, message: Message) -> Iterator[tuple[str, str]]:
        """Kind and text of the pieces of a message."""
        if message.tool_calls and message.content:
            yield "text", message.content
        for call in message.tool_calls:
            arguments = call["function"]["arguments"]
            values = {"id": call["id"], "name": call["function"]["name"], "arguments": _json(arguments)}
            for kind in self.call:
                items = (
                    piece
                    for name, value in arguments.items()
                    for piece in (("key", name), ("value", self._value(value)))
                )
                yield from items if kind == "items" else [(kind, values[kind])]
        for kind in self.result if message.role == "tool" else ():
            values = {"content": message.content, "name": message.name, "tool_call_id": message.tool_call_id}
            yield ("result" if kind == "content" else f"result {kind}"), values[kind]
        if message.role != "tool" and not message.tool_calls:
            yield KINDS[message.role], message.content

    def _value(self, value: str | bool) -> str:
        return _json(value) if self.as_json and not isinstance(value, str) else str(value)

    def _cut(self, shape: str, place: int, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """A renderer's treatment of blanks and quotes in a message's content, as Jinja."""
        messages = [*_talk(shape)]
        content = messages[place].content
        padded = f' \n "{content}" \n '
        try:
            text = self._text(messages, tools)
            messages[place] = replace(messages[place], content=padded)
            rendered = self._text(messages, tools)
        except DataError:
            return "X"
        return next((cut for cut, do in CUTS.items() if rendered == text.replace(content, do(padded))), "X")

    def _written(self, cuts: Mapping[str, str], *, tools: bool) -> str:
        """The template.

        Args:
            cuts: treatment of a content, by kind; `asked` is a question directly after a system message.
        """
        edges = {edge: text for edge, text in self.edges.items() if self.edges.get(edge[5:]) != text}
        lists = {"call_pieces": self.call, "result_pieces": self.result, "early": self.early, "late": self.late}
        head = "".join(
            "{%- set " + name + " = " + value + " -%}"
            for name, value in (
                ("edges", literal(edges)), ("kinds", literal(KINDS)), ("takes_tools", str(tools).lower()),
                ("as_json", str(self.as_json).lower()),
                *((name, f"[{', '.join(map(literal, kinds))}]") for name, kinds in lists.items()),
            )
        )  # fmt: skip
        lines: list[str] = []
        for cut in dict.fromkeys(cuts.values()):
            own = " or ".join(f"kind == '{kind}'" for kind, other in cuts.items() if other == cut)
            expression = cut.replace("X", "text")
            lines.append(f"{{%- {'elif' if lines else 'if'} {own} -%}}{{{{ {expression} }}}}")
        content = "\n".join([*lines, "{%- endif -%}"])
        tool = self.described or "''"
        if not self.escapes:
            tool += (
                f" if '\\\\' not in ({tool}) else raise_exception('no quotes can stand in the description of a tool')"
            )
        return head + BODY.replace("TOOL", tool).replace("CONTENT", content)
