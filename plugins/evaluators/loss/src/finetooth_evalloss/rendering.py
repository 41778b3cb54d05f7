"""How the evaluator `loss` turns a held-out example into tokens; also what a worker process builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import Conversation, DataError, Example, PromptCompletion, Rendered, Text
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Segments, TrainOn
from finetooth_hooks.data.preparation import Render
from finetooth_toolbox.messages.prompts import encode_document, render_completion, render_segments

ONE_KIND = "give data.eval rows of one kind"


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an example; its weights say what counts.

    Args:
        options: `train_on`, as in `LossOptions`, and `texts`: whether the rows are documents, of which every token
            counts.
    """
    train_on: TrainOn = options["train_on"]

    def render(example: Example) -> Rendered:
        if isinstance(example, Text):
            raise DataError("", "a document among conversations", action=ONE_KIND)
        if isinstance(example, Conversation):
            return context.renderer.render(example, train_on=train_on)
        if isinstance(example, Segments):
            return render_segments(example, context.tokenizer)
        if isinstance(example, PromptCompletion):
            return render_completion(example, context.tokenizer, train_prompt=train_on == "all", markup=context.markup)
        raise DataError(
            "",
            f"the row is {example.called}, which evaluator loss cannot measure",
            action="set evaluate.evaluators to one that measures such rows, or set data.format",
        )

    return _documents(context) if options["texts"] else render


def _documents(context: Context) -> Render:
    tokenizer, markup = context.tokenizer, context.markup

    def render(example: Example) -> Rendered:
        if not isinstance(example, Text):
            raise DataError("", "a conversation among documents", action=ONE_KIND)
        # a document without tokens is held by one that is never read, for its id; nothing is predicted in either
        tokens = encode_document(example.text, tokenizer, markup) or (0,)
        return Rendered(tokens, (1.0,) * len(tokens))

    return render
