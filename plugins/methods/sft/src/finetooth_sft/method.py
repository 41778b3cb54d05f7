"""The method `sft`: conversations and prompts with completions to data, one optimizer step per batch."""

from __future__ import annotations

import dataclasses

from finetooth_hooks import (
    Conversation,
    DataError,
    Example,
    Options,
    Pick,
    Prepared,
    PromptCompletion,
    Rendered,
)
from finetooth_hooks.batched import BatchedMethod
from finetooth_hooks.context import Context
from finetooth_hooks.examples import TrainOn
from finetooth_hooks.preparation import prepare
from finetooth_hooks.rendering import render_completion


class SftOptions(Options):
    """Options of `sft`."""

    train_on: TrainOn = "assistant"
    """Which messages train: every `assistant` message, only the `last` one of them, or `all` messages. A message's own
    `train` overrides it. Prompts with completions train the completion, or with `all` the prompt too."""
    loss: Pick = "cross_entropy"
    """The loss, a name or a mapping with `name` and its options."""


def build(options: SftOptions, context: Context) -> Sft:
    return Sft(options, context)


class Sft(BatchedMethod):
    """Supervised fine-tuning.

    Conversations are rendered by the recipe's renderer. A `PromptCompletion` is the tokens of prompt and completion
    with the end-of-text token after them, without chat markup; only the completion and that token train.
    """

    first_loss_high = "a wrong renderer or tokenizer"
    first_loss_low = "the model knows these rows already"

    def __init__(self, options: SftOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows.

        Raises:
            DataError: a row is broken, is a plain text, or has nothing to train on.
        """
        examples = self._context.examples("train")
        preparation = prepare(examples, self._render, self._context.train)
        batches = self.begin(preparation.data)
        report = dataclasses.replace(
            preparation.report, notes=preparation.report.notes + _notes([example for _, example in examples.rows])
        )
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def _render(self, example: Example) -> Rendered:
        if isinstance(example, Conversation):
            return self._context.renderer.render(example, train_on=self._options.train_on)
        if isinstance(example, PromptCompletion):
            return render_completion(example, self._context.tokenizer, train_prompt=self._options.train_on == "all")
        raise DataError(
            "format",
            "the row is a plain text, and method sft learns from conversations or prompts with completions",
            action="set method: pretrain, or data.format to the columns that hold prompt and completion",
        )


def _notes(examples: list[Example]) -> tuple[str, ...]:
    """What the rows say that no count says."""
    trailing = sum(
        1
        for example in examples
        if isinstance(example, Conversation)
        and example.messages[-1].role != "assistant"
        and any(message.role == "assistant" for message in example.messages)
    )
    if not trailing:
        return ()
    verb = "conversation ends" if trailing == 1 else "conversations end"
    return (
        f"{trailing} {verb} with a message that is not the assistant's: what follows the last answer trains nothing",
    )
