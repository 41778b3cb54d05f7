"""Renders an example to tokens for `sft`, also in worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Conversation, DataError, Example, Message, PromptCompletion, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Segments, Task, Text, TrainOn
from finetooth_hooks.data.preparation import Render
from finetooth_toolbox.messages.markup import trained_messages
from finetooth_toolbox.messages.plain_markup import PlainMarkup
from finetooth_toolbox.messages.prompts import render_completion, render_segments

TRAILING = "ends with a message that is not the assistant's"
DOCUMENT = "is a plain text"
BLANK = "training begins or ends after a blank"


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an example.

    Args:
        options: `train_on`, and `train_markup` if it is on, as in `SftOptions`.
    """
    train_on: TrainOn = options["train_on"]
    train_markup = bool(options.get("train_markup"))

    def render(example: Example) -> Rendered:
        if isinstance(example, Conversation):
            rendered = context.renderer.render(example, train_on=train_on)
            if train_markup and not any(message.weights or message.train is not None for message in example.messages):
                rendered = _unmasked(rendered)
            remarks = _remarks(example, train_on)
            return replace(rendered, remarks=(*rendered.remarks, *remarks)) if remarks else rendered
        if isinstance(example, PromptCompletion):
            return render_completion(example, context.tokenizer, train_prompt=train_on == "all", markup=context.markup)
        if isinstance(example, Segments):
            return render_segments(example, context.tokenizer)
        if isinstance(example, Text) and not PlainMarkup(context.tokenizer).first(example.text):
            return _document(example, context)
        raise _refusal(example, context)

    return render


def _document(example: Text, context: Context) -> Rendered:
    """All of a text, and the end-of-text token."""
    if not example.text.strip():
        raise DataError("", "the text is empty", action="remove the row")
    rendered = render_completion(PromptCompletion("", example.text), context.tokenizer, markup=context.markup)
    return replace(rendered, remarks=(DOCUMENT,))


def _unmasked(rendered: Rendered) -> Rendered:
    """All tokens train, except places of images and sounds, which have no predictable tokens."""
    shown = {place for medium in rendered.media for place in range(medium.start, medium.stop)}
    return replace(rendered, weights=tuple(float(place not in shown) for place in range(len(rendered.tokens))))


def _refusal(example: Example, context: Context) -> DataError:
    if isinstance(example, Text) and (spelled := PlainMarkup(context.tokenizer).first(example.text)):
        return DataError(
            "",
            f"the row is a text of rendered chat markup ({spelled}), and method sft learns from conversations or "
            "prompts with completions",
            action="give the `messages` that it was made of, or `segments` that say what trains; method: pretrain with "
            "data.markup: special trains all of it",
        )
    action = "set another method, or data.format to the columns that hold prompt and completion"
    others = example.columns if isinstance(example, Task) else {}
    texts = {name: value for name, value in others.items() if isinstance(value, str)}
    if texts:
        answer = max(texts, key=lambda name: len(texts[name]))  # a level or a topic is shorter than the content
        named = f"data.format: {{name: prompt_completion, prompt: prompt, completion: {answer}}}"
        action = f"set {named} if {answer} is the answer, or set another method"
    return DataError(
        "",
        f"the row is {example.called}, and method sft learns from conversations or prompts with completions",
        action=action,
    )


def _remarks(conversation: Conversation, train_on: TrainOn) -> tuple[str, ...]:
    trained = trained_messages(conversation.messages, train_on)
    blank = any(_blank_boundary(*pair) for pair in zip(conversation.messages, trained, strict=True))
    return (TRAILING,) * _trails(conversation) + (BLANK,) * blank


def _blank_boundary(message: Message, trains: bool) -> bool:
    """Whether the weight changes after a blank in the message. Most tokenizers join a blank and the next word into one
    token, which then has characters of both weights and gets the smaller one. A line feed stays separate."""
    for text, ranges in ((message.content, message.weights), (message.reasoning, message.reasoning_weights)):
        if not ranges:
            continue
        weights = [float(trains)] * len(text)
        for part in ranges:
            weights[part.start : part.stop] = [part.weight] * (part.stop - part.start)
        ends = (i for i in range(1, len(text)) if weights[i - 1] != weights[i])
        if any(text[i - 1].isspace() and text[i - 1] != "\n" for i in ends):
            return True
    return False


def _trails(conversation: Conversation) -> bool:
    """Whether messages follow the last answer."""
    roles = [message.role for message in conversation.messages]
    return roles[-1] != "assistant" and "assistant" in roles
