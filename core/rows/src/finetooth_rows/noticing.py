"""Inspects every row before and after rendering, for all methods: schemas and calls of tools, markup in plain text, end
tokens that do not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import (
    Conversation,
    Example,
    Labelled,
    Message,
    Pair,
    Rendered,
    Segments,
    Side,
    Stepwise,
    Task,
    messages_of,
)
from finetooth_hooks.errors import DataError
from finetooth_toolbox.messages.answers import is_scored_at_end
from finetooth_toolbox.messages.encoding import Encoder
from finetooth_toolbox.messages.plain_markup import PlainMarkup
from finetooth_toolbox.messages.tool_schemas import check_tools
from finetooth_toolbox.text.column_names import repeated

ASSISTANT_FIRST = "begins with the assistant's message, which the model learns to say unasked"
ENDLESS = "the last answer trains without the token that ends it: the model does not learn to stop"
ENDLESS_EARLIER = "an answer before the last trains without the token that ends it"
ENDLESS_SEGMENT = (
    "the last segment trains up to the end of the text and does not end with a control token: the model does not "
    "learn to stop; spell the token that ends an answer, segments read it as one"
)
ORPHAN = "a tool's result follows no call"
TWICE = "two results answer one call"
SHUFFLED = "results stand in another order than the calls that they answer, and most markups tell them by their place"
UNNAMED = "a result names a tool that was not called"
UNDECLARED = "a call is of a function that is not among the row's tools"


class RowInspector:
    """Inspects rows of one run.

    Args:
        context: has tokenizer, renderer and `data.markup`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def _markup(self) -> PlainMarkup:
        return PlainMarkup(self._context.tokenizer)

    def before(self, example: Example) -> tuple[str, ...]:
        """Notices about an example, with the same words for all such rows.

        Raises:
            DataError: schemas of tools are malformed, or tool results do not belong to a call.
        """
        notices: dict[str, None] = {}
        tools = _tools(example)
        check_tools(tools)
        for messages in _conversations(example):
            notices |= dict.fromkeys(check_links(messages, tools))
        if isinstance(example, Conversation):
            first = next((message.role for message in example.messages if message.role != "system"), "")
            if first == "assistant":
                notices[ASSISTANT_FIRST] = None
        if not messages_of(example) and self._context.markup == "plain" and (notice := self._markup.notice(example)):
            notices[notice] = None
        return tuple(notices)

    def after(self, example: Example, rendered: Rendered) -> tuple[str, ...]:
        """Notices about its tokens: answers that train without the token that ends them.

        Scored texts need no end token. In a message whose parts have their own weights, the row decides what trains.
        """
        notices: dict[str, None] = {}
        parts = [part for part in (rendered, *rendered.others) if any(part.weights) and not is_scored_at_end(part)]
        if isinstance(example, Segments):
            endless = any(part.weights[-1] and not self._encoder.is_special(part.tokens[-1]) for part in parts)
            return (ENDLESS_SEGMENT,) * endless
        for messages, part in zip(_conversations(example), parts, strict=False):
            notices |= dict.fromkeys(self._endless(messages, part))
        return tuple(notices)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._context.tokenizer)

    def _endless(self, messages: Sequence[Message], rendered: Rendered) -> Iterator[str]:
        """
        Args:
            messages: the messages of the sequence.
        """
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(rendered.spans) != len(messages):  # then only the end of the last one is known
            weights = rendered.weights if answers and answers[-1] == len(messages) - 1 else ()
            answers, ranges = answers[-1:], [(0, len(weights))] * len(messages)
        else:
            ranges = [*rendered.spans]
        for i in answers:
            begin, end = ranges[i]
            if not any(rendered.weights[begin:end]) or messages[i].weights or messages[i].reasoning_weights:
                continue
            # in some markups it is the token that opens the next message
            end += end < len(rendered.tokens) and bool(rendered.weights[end])
            if not self._ends(rendered, begin, end):
                yield ENDLESS if i == answers[-1] else ENDLESS_EARLIER

    def _ends(self, rendered: Rendered, begin: int, end: int) -> bool:
        """Whether the trained tokens between two positions end with a stop token, perhaps with blanks or control tokens
        after it."""
        trained = [token for token, weight in zip(rendered.tokens[begin:end], rendered.weights[begin:end], strict=True)
                   if weight]  # fmt: skip
        stops = [k for k, token in enumerate(trained) if token in self._context.renderer.stop_ids]
        behind = trained[stops[-1] + 1 :] if stops else []
        return bool(stops) and not self._context.tokenizer.decode(behind, skip_special=True).strip()


def _tools(example: Example) -> Sequence[Mapping[str, Any]]:
    return example.tools if isinstance(example, Conversation | Pair | Labelled | Task) else ()


def _conversations(example: Example) -> Iterator[tuple[Message, ...]]:
    """Conversations as they are rendered: a prompt with each of its answers."""
    if isinstance(example, Conversation):
        yield example.messages
    elif isinstance(example, Pair):
        for answer in (example.chosen, example.rejected):
            yield _joined(example.prompt, answer)
    elif isinstance(example, Labelled):
        yield _joined(example.prompt, example.completion)
    elif isinstance(example, Stepwise | Task):
        yield _joined(example.prompt, ())


def _joined(prompt: Side, answer: Side) -> tuple[Message, ...]:
    return tuple(message for side in (prompt, answer) if not isinstance(side, str) for message in side)


def check_links(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """Notices about a conversation's calls and results, with the same words for all such rows.

    Contradictions are refused, since the call of a result would be a guess. Possible intentions (a result whose call is
    in plain text, a call of a tool that the model already knows) are only reported.

    Args:
        tools: schemas, of functions with or without the level `function`.

    Raises:
        DataError: two calls of a message have the same id, or a result has an id that is not the id of an earlier call.
    """
    remarks: dict[str, None] = {}
    declared = {name for tool in tools if (name := _called(tool).get("name"))}
    known: set[str] = set()
    calls: Sequence[Mapping[str, Any]] = ()
    results: list[Message] = []
    for i, message in enumerate(messages):
        if message.role == "tool":
            results.append(message)
            remarks |= dict.fromkeys(_of_result(f"messages[{i}]", results, calls, known))
            continue
        calls, results = message.tool_calls, []
        ids = [str(call["id"]) for call in calls if call.get("id")]
        if twice := repeated(ids):
            raise DataError(f"messages[{i}]", f"two of its calls have the id {twice!r}", action="give each its own")
        known.update(ids)
        if declared and any(_called(call).get("name") not in declared for call in calls):
            remarks[UNDECLARED] = None
    return tuple(remarks)


def _of_result(
    where: str, results: Sequence[Message], calls: Sequence[Mapping[str, Any]], known: set[str]
) -> tuple[str, ...]:
    """Notices about the latest result after the calls.

    Raises:
        DataError: none of the calls has the id of the result.
    """
    place, result = len(results) - 1, results[-1]
    ids = [str(call.get("id") or "") for call in calls]
    own = result.tool_call_id
    if own and any(known) and own not in known:
        listed = ", ".join(map(repr, filter(None, ids))) or "none"
        raise DataError(
            f"{where}.tool_call_id", f"it is {own!r}, which no call has; those before it are {listed}",
            action="give the result the id of its call",
        )  # fmt: skip
    if place >= len(calls):
        return (ORPHAN,)
    if own and own in (other.tool_call_id for other in results[:-1]):
        return (TWICE,)
    if own and ids[place] and ids[place] != own:
        return (SHUFFLED,)
    names = {_called(call).get("name") for call in calls}
    return (UNNAMED,) if result.name and result.name not in names else ()


def _called(value: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = value.get("function", value)
    return inner if isinstance(inner, Mapping) else {}
