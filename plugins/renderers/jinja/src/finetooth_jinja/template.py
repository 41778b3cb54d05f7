"""Chat templates in a sandbox, as transformers defines them: trimmed blocks, loop controls, `tojson` that keeps text
as it is, `raise_exception`, `strftime_now`, and `{% generation %}` blocks around what the assistant says.

Two things differ on purpose: the date is fixed, so that a run gives the same tokens tomorrow, and a template that
fails says so with a `TemplateRefused`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from finetooth_toolbox.messages.bounded_jinja import FAILURES, BoundedEnvironment, counted
from finetooth_toolbox.messages.chat_templates import to_json

if TYPE_CHECKING:
    from finetooth_jinja.media import Stood

_PRIVATE_USE = range(0xE000, 0xF900)


class TemplateRefused(ValueError):
    """The template cannot render this conversation; the message is its own."""


@dataclass(frozen=True)
class RenderedText:
    """A conversation as text.

    Attributes:
        text: the text.
        generated: half-open character ranges of the template's `{% generation %}` blocks; empty without any.
        media: images, sounds and videos in the text, in order.
    """

    text: str
    generated: tuple[tuple[int, int], ...] = ()
    media: tuple[Stood, ...] = ()


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja.
        now: the date that a template gets when it asks for today's.
        variables: what it may read in addition to the messages: `bos_token`, `enable_thinking`, ...

    Raises:
        TemplateRefused: the source is not Jinja.
    """

    def __init__(self, source: str, now: datetime, variables: Mapping[str, Any]) -> None:
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = now.strftime
        self._variables = dict(variables)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateRefused(f"line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise TemplateRefused("the template is nested too deep") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> RenderedText:
        """Renders a conversation and marks what its generation blocks wrote.

        Args:
            messages: in the shape templates read.
            prompt: end where the assistant begins to speak.

        Raises:
            TemplateRefused: the template raises, or reads what is not there; or JSON cannot say the conversation.
        """
        try:
            # two characters that the conversation does not hold mark the generation blocks while rendering
            written = json.dumps([messages, tools], ensure_ascii=False)
            unheld = (mark for mark in map(chr, _PRIVATE_USE) if mark not in written)
            begin, end = islice(unheld, 2)  # no further: each look reads the whole conversation
            marked = counted(
                self._template.render,
                messages=[dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                documents=None,
                add_generation_prompt=prompt,
                _generation_marks=(begin, end),
                **self._variables,
            )
        except FAILURES as error:
            raise TemplateRefused(" ".join(str(error).split()) or type(error).__name__) from error
        return _unmarked(marked, begin, end)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: the block's text between two marks."""

    tags = {"generation"}  # noqa: RUF012  # the name and type are jinja2's

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = jinja2.nodes.Name("_generation_marks", "load")
        return jinja2.nodes.CallBlock(self.call_method("_mark", [marks]), [], [], body).set_lineno(line)

    def _mark(self, marks: tuple[str, str], caller: Callable[[], str]) -> str:
        return f"{marks[0]}{caller()}{marks[1]}"


def _unmarked(marked: str, begin: str, end: str) -> RenderedText:
    """Take the marks out and keep where they stood."""
    text = ""
    ranges: list[tuple[int, int]] = []
    for i, part in enumerate(marked.split(begin)):
        inside, mark, after = part.partition(end)
        if i and mark:
            ranges.append((len(text), len(text) + len(inside)))
        text += inside + after
    return RenderedText(text, tuple(ranges))


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
