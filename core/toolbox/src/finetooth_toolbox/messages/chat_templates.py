"""Compares a model's own chat template with a hand-written renderer.

A family's renderer is tested against the official template, but a model may have another one, as many fine-tuned models
do. `foreign_template` describes the difference for `Context.note`. `shaped` returns a message in the form that
templates read, `default_system` their default system message. jinja2 is needed, and imported only if a template exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from finetooth_hooks.data.examples import Conversation, Message
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Renderer, Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", re.DOTALL)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks around answers in templates made for training, which Jinja itself does not know."""

TODAY = datetime(2026, 1, 15, 12)
"""The fixed date for templates that use today's date, so that the result does not change."""

_ASKED = (Message("user", "Hello?"), Message("assistant", "Yes."))
PROBES = (
    Conversation(_ASKED),
    Conversation((Message("system", "Be brief."), *_ASKED, Message("user", "Sure?"), Message("assistant", "Quite."))),
    Conversation(_ASKED, ({"type": "function", "function": {"name": "clock", "parameters": {}}},)),
)
"""Conversations on which a template is compared with a renderer."""


def render_template(
    template: str, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False, **variables: Any
) -> str | None:
    """A template's text for messages; None if it fails.

    Args:
        prompt: end at the start of the assistant's answer.
        variables: further variables of the template, `bos_token="<s>"`.
    """
    from finetooth_toolbox.messages.bounded_jinja import FAILURES, counted

    values = {"messages": list(messages), "add_generation_prompt": prompt, "tools": None, **variables}
    try:
        return str(counted(_compiled(template).render, **values))
    except FAILURES:
        return None


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    from finetooth_toolbox.messages.bounded_jinja import BoundedEnvironment

    # chat templates expect these two trim settings
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json  # Jinja's own filter escapes for web pages, and sorts keys
    environment.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
    return environment.from_string(_GENERATION.sub("", template))


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of transformers' templates."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def chatml_system(template: str | None) -> str:
    """The system message a ChatML template adds when a conversation has none; empty if it adds none."""
    return default_system(template, _SYSTEM)


def default_system(template: str | None, pattern: re.Pattern[str], **variables: Any) -> str:
    """The system message a template adds to a conversation without one; empty if it adds none, cannot run, or is None.

    Args:
        pattern: of the beginning of a conversation with a system message, whose first group is its content.
        variables: further variables of the template, `bos_token=""`.
    """
    written = None if template is None else render_template(template, [shaped(_ASKED[0])], **variables)
    match = pattern.match(written or "")
    return match.group(1) if match else ""


def shaped(message: Message) -> dict[str, Any]:
    """A message in the form of chat templates; absent fields are left out, since templates test for presence."""
    shape: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        # templates of different families read either name
        shape["reasoning_content"] = shape["thinking"] = message.reasoning
    if message.tool_calls:
        shape["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.name:
        shape["name"] = message.name
    if message.tool_call_id:
        shape["tool_call_id"] = message.tool_call_id
    return shape


def chat_opening(tokenizer: Tokenizer) -> str:
    """The beginning-of-text token for a markup without a family: used if the tokenizer itself adds it before a text, or
    the model's own chat template begins with it. A tokenizer may have a token that its model never saw there: that of
    SmolLM2 is `<|im_start|>`, which begins a turn.
    """
    if tokenizer.bos_id is None:
        return ""
    begin, template = tokenizer.decode([tokenizer.bos_id]), tokenizer.chat_template
    if tokenizer.adds_bos or template is None:
        return begin if tokenizer.adds_bos else ""
    eos = "" if tokenizer.eos_id is None else tokenizer.decode([tokenizer.eos_id])
    written = render_template(template, [shaped(m) for m in _ASKED], tools=[], bos_token=begin, eos_token=eos) or ""
    return begin if written.startswith(begin) and begin not in written[len(begin) :] else ""


def foreign_template(renderer: Renderer, name: str, tokenizer: Tokenizer, **variables: Any) -> str:
    """The difference between the tokenizer's chat template and a renderer in words; empty if they agree or the
    tokenizer has no template.

    Args:
        name: of the renderer.
        variables: further variables of the template, from the renderer's options.
    """
    template = tokenizer.chat_template
    if template is None:
        return ""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    known = {key: "" if id_ is None else tokenizer.decode([id_]) for key, id_ in ids.items()}
    difference = _difference(renderer, name, tokenizer, template, {**known, **variables})
    advice = "data.renderer: jinja follows the model's own chat template"
    return difference and f"renderer {name}: {difference}; {advice}"


def _difference(
    renderer: Renderer, name: str, tokenizer: Tokenizer, template: str, variables: Mapping[str, Any]
) -> str:
    seen = False
    for probe, ask in [(probe, ask) for probe in PROBES for ask in (False, True)]:
        messages, tools = probe.messages[: -1 if ask else None], probe.tools
        try:
            tokens = renderer.prompt(messages, tools) if ask else renderer.render(Conversation(messages, tools)).tokens
        except DataError:
            continue  # the family has no system message, or no tools
        shapes = [shaped(message) for message in messages]
        expected = render_template(template, shapes, prompt=ask, **{**variables, "tools": list(tools) or None})
        if tools and expected in (None, render_template(template, shapes, prompt=ask, **variables)):
            continue  # the template refuses tools, or leaves them out
        if expected is None:
            return "the model's chat template cannot be rendered for comparison"
        seen = True
        if tokens != tuple(tokenizer.encode(expected, special=True)):
            texts = expected, tokenizer.decode(tokens)
            apart = (at for at, (own, other) in enumerate(zip(*texts, strict=False)) if own != other)
            begin = max(0, next(apart, min(map(len, texts))) - 40)
            theirs, ours = (repr(text[begin:][:120]) for text in texts)
            return f"the model's own chat template says {theirs} where {name} says {ours}" + " with tools" * bool(tools)
    return "" if seen else "the model's chat template cannot be rendered for comparison"
