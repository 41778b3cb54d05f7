"""What is looked at in every row before and after it is rendered, whatever the method: schemas and calls of tools,
markup in plain text, ends that do not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.examples import Conversation, Example, Labelled, Message, Pair, Rendered, Side, Task, messages_of

from finetooth_toolbox.rendering.plain_markup import PlainMarkup
from finetooth_toolbox.rendering.tool_links import check_links
from finetooth_toolbox.rendering.tool_schemas import check_tools

ASSISTANT_FIRST = "begins with the assistant's message, which the model learns to say unasked"
ENDLESS = "the last answer trains without the token that ends it: the model does not learn to stop"


class Noticing:
    """Looks at rows for one run.

    Args:
        context: gives tokenizer, renderer and `data.markup`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def _markup(self) -> PlainMarkup:
        return PlainMarkup(self._context.tokenizer)

    def before(self, example: Example) -> tuple[str, ...]:
        """What there is to tell of an example, in words that are the same for all such rows.

        Raises:
            DataError: schemas of tools are malformed, or results belong to no call.
        """
        found: dict[str, None] = {}
        tools = _tools(example)
        check_tools(tools)
        for messages in _conversations(example):
            found |= dict.fromkeys(check_links(messages, tools))
        if isinstance(example, Conversation):
            first = next((message.role for message in example.messages if message.role != "system"), "")
            if first == "assistant":
                found[ASSISTANT_FIRST] = None
        if not messages_of(example) and self._context.markup == "plain" and (told := self._markup.notice(example)):
            found[told] = None
        return tuple(found)

    def after(self, example: Example, rendered: Rendered) -> tuple[str, ...]:
        """What there is to tell of its tokens: the last answer trains, but not what ends it."""
        if not isinstance(example, Conversation) or not rendered.tokens or not _last_trains(example, rendered):
            return ()
        last = next(i for i in range(len(rendered.weights) - 1, -1, -1) if rendered.weights[i])
        return () if rendered.tokens[last] in self._context.renderer.stop_ids else (ENDLESS,)


def _last_trains(conversation: Conversation, rendered: Rendered) -> bool:
    """The conversation ends with an answer, and tokens of that answer train."""
    if conversation.messages[-1].role != "assistant":
        return False
    begin = rendered.spans[-1][0] if len(rendered.spans) == len(conversation.messages) else 0
    return any(rendered.weights[begin:])


def _tools(example: Example) -> Sequence[Mapping[str, Any]]:
    return example.tools if isinstance(example, Conversation | Pair | Labelled | Task) else ()


def _conversations(example: Example) -> Iterator[tuple[Message, ...]]:
    """Each as it is rendered: a prompt with each of its answers."""
    if isinstance(example, Conversation):
        yield example.messages
    elif isinstance(example, Pair):
        for answer in (example.chosen, example.rejected):
            yield _joined(example.prompt, answer)
    elif isinstance(example, Labelled):
        yield _joined(example.prompt, example.completion)


def _joined(prompt: Side, answer: Side) -> tuple[Message, ...]:
    return tuple(message for side in (prompt, answer) if not isinstance(side, str) for message in side)
