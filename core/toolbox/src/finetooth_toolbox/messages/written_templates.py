"""Chat templates for models that learned another markup than their base's: what a renderer writes, as Jinja.

A renderer is code, and other tools read templates. The markup is learned from what the renderer writes around marked
messages. A template counts only if it gives the renderer's own tokens for whole conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Conversation, Message
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_toolbox.messages.chat_templates import render_template, shaped
from finetooth_toolbox.messages.openings import NONE, Opening

_SYSTEM, _USER, _ANSWER = Message("system", "SYSTEMTEXT"), Message("user", "USERTEXT"), Message("assistant", "ANSWER")
_PADDED = (
    Message("user", "  Größe 東京?\n"),
    Message("assistant", " - one\n- two \n"),
    Message("user", "and\n\nthen "),
)
_TALK = (Message("user", "Hello?"), Message("assistant", "Yes."), Message("user", "2 + 2 = ?"))
_BRIEF = Message("system", "Be brief.\nAlways.")
PROBES = (_TALK[:1], _TALK, (*_TALK, Message("assistant", "4."), Message("user", "Sure?")), _PADDED,
          (_BRIEF, *_TALK[:1]), (_BRIEF, *_TALK), (_BRIEF, *_PADDED))  # fmt: skip
"""Conversations that end with a question, on which a template is compared with a renderer."""
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
"""Conversations in which a tool may be called, on which a template that takes tools is compared."""

_BODY = """\
{%- if tools %}{{ raise_exception('it was trained without tools') }}{% endif -%}
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- if role not in before or (role == 'system' and not loop.first) -%}
{{ raise_exception('no message of role ' + role + ' can stand here') }}
{%- elif loop.first -%}{{ opening[role] }}
{%- elif role == 'user' and loop.index0 == 1 and messages[0]['role'] == 'system' -%}{{ behind['system'] }}
{%- set role = 'asked' -%}
{%- else -%}{{ before[role] }}
{%- endif -%}
CONTENT
{%- if role != 'system' -%}{{ behind[message['role']] }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ask }}{%- endif -%}"""


def template_of(renderer: Renderer, tokenizer: Tokenizer, opening: Opening = NONE) -> str | None:
    """A chat template that gives the renderer's tokens: its own, that of the tokenizer, or one that is written here;
    None if there is none.

    Args:
        opening: what conversations begin with that bring no system message.
    """
    head = _with_system(opening.system) if opening.system else ""
    for source in (renderer.template, tokenizer.chat_template):
        if source and gives_the_same(head + source, renderer, tokenizer, opening):
            return head + source
    for source in _learned(renderer, tokenizer):
        if gives_the_same(head + source, renderer, tokenizer, opening):
            return head + source
    return None


def gives_the_same(template: str, renderer: Renderer, tokenizer: Tokenizer, opening: Opening = NONE) -> bool:
    """Whether a template gives the tokens of a renderer, for all conversations that the renderer can say; it
    may refuse system messages, unless conversations begin with one, and tools."""
    compared = 0
    for tools, probes in (((), PROBES), ((_SHOP,), WITH_TOOLS)):
        for probe in probes:
            try:
                wanted = renderer.prompt(opening.before(probe), tools)
            except DataError:
                continue  # the markup has no system message, or no tools
            tokens = tokens_by(template, probe, tokenizer, tools)
            if tokens is None and (tools or (probe[0].role == "system" and not opening.system)):
                continue  # refused, so nobody is misled
            if tuple(tokens or ()) != tuple(wanted):
                return False
            compared += not tools
    return compared > 0


def tokens_by(
    template: str, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int] | None:
    """Tokens of a prompt as other tools make them: a template's text with its special tokens; None if it refuses."""
    named: dict[str, Any] = {**named_tokens(tokenizer), **({"tools": list(tools)} if tools else {})}
    text = render_template(template, [shaped(message) for message in messages], prompt=True, **named)
    return None if text is None else tokenizer.encode(text, special=True)


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Spellings that templates read by name."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: "" if id_ is None else tokenizer.decode([id_]) for name, id_ in ids.items()}


def _with_system(text: str) -> str:
    """What makes a template begin with a system message where the conversation has none."""
    message = literal({"role": "system", "content": text})
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}{% set messages = [" + message + "] + messages %}"
        "{% endif %}"
    )


def _learned(renderer: Renderer, tokenizer: Tokenizer) -> Iterator[str]:
    """Templates by what the renderer writes around messages: one with system messages, if it has any, and one that
    refuses them."""

    def asked(*messages: Message) -> str:
        return tokenizer.decode(renderer.prompt(messages))

    def said(*messages: Message) -> str:
        return tokenizer.decode(renderer.render(Conversation(messages)).tokens)

    try:
        whole = asked(_USER, _ANSWER, _USER)
        to_user, after_user, after_answer, to_answer = _around(whole, _USER, _ANSWER, _USER)
        ends_answer = said(_USER, _ANSWER).rpartition(_ANSWER.content)[2]
        cuts = {"user": _cut(asked, _USER), "assistant": _cut(lambda one: asked(_USER, one, _USER), _ANSWER)}
    except DataError:
        return
    try:
        ends_user = said(_USER).rpartition(_USER.content)[2]
    except DataError:
        ends_user = ""
    if not (after_user.startswith(ends_user) and to_answer.startswith(ends_user)):
        ends_user = ""
    if not after_answer.startswith(ends_answer):
        ends_answer = after_answer
    before = {"user": after_answer.removeprefix(ends_answer), "assistant": after_user.removeprefix(ends_user)}
    opening, behind = {"user": to_user, "assistant": before["assistant"]}, {"user": ends_user, "assistant": ends_answer}
    ask = to_answer.removeprefix(ends_user)
    try:
        start, between, _ = _around(asked(_SYSTEM, _USER), _SYSTEM, _USER)
        own = {
            "system": _cut(lambda one: asked(one, _USER), _SYSTEM),
            "asked": _cut(lambda one: asked(_SYSTEM, one), _USER),
        }
        yield _written({**opening, "system": start}, {**before, "system": ""}, {**behind, "system": between}, ask,
                       {**cuts, **own})  # fmt: skip
    except DataError:
        pass  # a markup without system messages; the template below has none either
    yield _written(opening, before, behind, ask, cuts)


def _cut(asked: Callable[[Message], str], message: Message) -> str:
    """What a renderer does to blanks around a message's content, as Jinja says it."""
    text, padded = asked(message), f" \n {message.content} \n "
    rendered = asked(replace(message, content=padded))
    kept = {"": padded, ".strip()": padded.strip(), ".lstrip()": padded.lstrip(), ".rstrip()": padded.rstrip()}
    return next((cut for cut, left in kept.items() if rendered == text.replace(message.content, left)), "")


def _written(
    opening: Mapping[str, str], before: Mapping[str, str], behind: Mapping[str, str], ask: str, cuts: Mapping[str, str]
) -> str:
    """The template.

    Args:
        opening: what stands before the first message, by its role; `before` before a later one, `behind` behind one;
            behind a system message, all up to the next content.
        ask: the text that opens an answer.
        cuts: what is done to a content, by role; `asked` is a user's first behind a system message.
    """
    names: dict[str, str | Mapping[str, str]] = {"opening": opening, "before": before, "behind": behind, "ask": ask}
    head = "".join("{%- set " + name + " = " + literal(value) + " -%}" for name, value in names.items())
    contents = dict.fromkeys(cuts.values())
    said = [f"{{%- {{IF}} {_of(cuts, cut)} -%}}{{{{ message['content']{cut} }}}}" for cut in contents]
    chosen = "\n".join(line.replace("{IF}", "elif" if place else "if") for place, line in enumerate(said))
    return head + _BODY.replace("CONTENT", f"{chosen}\n{{%- endif -%}}")


def _of(cuts: Mapping[str, str], cut: str) -> str:
    """Jinja's question whether a message's role is one with this cut."""
    return " or ".join(f"role == '{role}'" for role, own in cuts.items() if own == cut)


def _around(text: str, *messages: Message) -> list[str]:
    """What stands before each message of a text, and behind the last."""
    found = []
    for message in messages:
        before, _, text = text.partition(str(message.content))
        found.append(before)
    return [*found, text]


def literal(value: str | Mapping[str, Any]) -> str:
    """A text, or texts by name, as Jinja writes it; llama.cpp's reader of templates knows no escapes but these."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {literal(item)}" for name, item in value.items()) + "}"
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        value = value.replace(plain, escaped)
    return f"'{value}'"
