"""Compares chat templates with renderers: a template must give a renderer's own tokens for whole conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetooth_hooks.data.examples import Message
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_toolbox.messages.chat_templates import render_template, shaped
from finetooth_toolbox.messages.openings import NONE, Opening

_PADDED = (
    Message("user", "  Größe 東京?\n"),
    Message("assistant", " - one\n- two \n"),
    Message("user", "and\n\nthen "),
)
_TALK = (Message("user", "Hello?"), Message("assistant", "Yes."), Message("user", "2 + 2 = ?"))
_BRIEF = Message("system", "Be brief.\nAlways.")
PROBES = (_TALK[:1], _TALK, (*_TALK, Message("assistant", "4."), Message("user", "Sure?")), _PADDED,
          (_BRIEF, *_TALK[:1]), (_BRIEF, *_TALK), (_BRIEF, *_PADDED))  # fmt: skip
"""Conversations that end with a question, for comparing a template with a renderer."""
_SHOP = {"type": "function", "function": {
    "name": "price_of", "description": "What a thing costs.",
    "parameters": {"type": "object", "properties": {"thing": {"type": "string", "description": "Its name."}},
                   "required": ["thing"]}}}  # fmt: skip
_CALL = {"id": "call00001", "type": "function", "function": {"name": "price_of", "arguments": {"thing": "une clé"}}}
WITH_TOOLS = (
    _TALK[:1],
    (_BRIEF, *_TALK),
    (*_TALK[:1], Message("assistant", "", tool_calls=(_CALL,)),
     Message("tool", "12 €", name="price_of", tool_call_id="call00001")),
)  # fmt: skip
"""Conversations with a tool, for comparing a template that supports tools."""

_HOUR = {
    "type": "function",
    "function": {
        "name": "hour",
        "description": "The time of a place.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_MANY = {
    "id": "call00002",
    "type": "function",
    "function": {
        "name": "hour",
        "arguments": {"text": 'a "b"\nc', "list": [1, {"k": None}], "x": 2.5, "yes": True, "none": None},
    },
}
_EMPTY = {"id": "call00003", "type": "function", "function": {"name": "hour", "arguments": {}}}


def _results(*calls: Mapping[str, Any]) -> Iterator[Message]:
    for call in calls:
        yield Message("tool", f' "{call["id"]}"\n', name=call["function"]["name"], tool_call_id=call["id"])


CALLING = (
    (_BRIEF, *_TALK[:1], Message("assistant", "", tool_calls=(_CALL, _MANY)), *_results(_CALL, _MANY),
     Message("assistant", "Noon."), *_TALK[2:]),
    (*_TALK, Message("assistant", "", tool_calls=(_EMPTY,)), *_results(_EMPTY)),
    (*_TALK, Message("assistant", "Let me see.\n", tool_calls=(_MANY,)), *_results(_MANY)),
)  # fmt: skip
"""Conversations with two tools, for comparing a learned template: several calls and results, arguments of all kinds and
none, text next to a call, questions and answers after one."""


def gives_the_same(
    template: str, renderer: Renderer, tokenizer: Tokenizer, opening: Opening = NONE,
    calling: Sequence[Sequence[Message]] = (),
) -> bool:  # fmt: skip
    """Whether a template gives the tokens of a renderer, for all conversations that the renderer supports; it may
    refuse tools, and system messages unless conversations begin with one.

    Args:
        calling: further conversations to compare, with two tools.
    """
    compared = 0
    for tools, probes in (((), PROBES), ((_SHOP,), WITH_TOOLS), ((_SHOP, _HOUR), calling)):
        for probe in probes:
            try:
                wanted = renderer.prompt(opening.before(probe), tools)
            except DataError:
                continue  # the markup has no system message, or no tools
            tokens = tokens_by(template, probe, tokenizer, tools)
            if tokens is None and (tools or (probe[0].role == "system" and not opening.system)):
                continue  # a refusal misleads nobody
            if tuple(tokens or ()) != tuple(wanted):
                return False
            compared += not tools
    return compared > 0


def tokens_by(
    template: str, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int] | None:
    """Tokens of a prompt in other tools: a template's text with its special tokens; None if it refuses."""
    named: dict[str, Any] = {**named_tokens(tokenizer), **({"tools": list(tools)} if tools else {})}
    text = render_template(template, [shaped(message) for message in messages], prompt=True, **named)
    return None if text is None else tokenizer.encode(text, special=True)


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Spellings of tokens by the names in templates."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: "" if id_ is None else tokenizer.decode([id_]) for name, id_ in ids.items()}


def literal(value: str | Mapping[str, Any]) -> str:
    """A text, or texts by name, as a literal of Jinja; llama.cpp's reader of templates knows only these escapes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {literal(item)}" for name, item in value.items()) + "}"
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        value = value.replace(plain, escaped)
    return f"'{value}'"
