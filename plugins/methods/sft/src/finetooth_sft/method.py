"""The method `sft`: conversations and prompts with completions to data, one optimizer step per batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks import (
    Conversation,
    DataError,
    Datum,
    Engine,
    Example,
    Options,
    Pick,
    Prepared,
    PromptCompletion,
    Rendered,
    StepReport,
)
from finetooth_hooks.context import Context
from finetooth_hooks.examples import TrainOn
from finetooth_hooks.preparation import Batches, prepare, train_step
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


class Sft:
    """Supervised fine-tuning.

    Conversations are rendered by the recipe's renderer. A `PromptCompletion` is the tokens of prompt and completion
    with the end-of-text token after them, without chat markup; only the completion and that token train.
    """

    def __init__(self, options: SftOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._loss = context.loss(options.loss, setting="method.loss")
        self._data: tuple[Datum, ...] = ()
        self._batches: Batches | None = None
        self._restored: Mapping[str, Any] | None = None

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows.

        Raises:
            DataError: a row is broken, is a plain text, or has nothing to train on.
        """
        examples = self._context.examples("train")
        preparation = prepare(examples, self._render, self._context.train)
        self._data = preparation.data
        self._batches = batches = Batches.of(len(self._data), self._context.train)
        if self._restored is not None:
            batches.restore(self._restored)
        report = dataclasses.replace(
            preparation.report, notes=preparation.report.notes + _notes([example for _, example in examples.rows])
        )
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        batches = self._prepared()
        for indices in batches:
            report = train_step(engine, [self._data[i] for i in indices], self._loss, batches.epoch)
            if batches.step == 1:
                self._check_first(report)
            yield report

    def state(self) -> Mapping[str, Any]:
        return self._prepared().state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken; before or after `prepare`."""
        self._restored = state
        if self._batches is not None:
            self._batches.restore(state)

    def _prepared(self) -> Batches:
        if self._batches is None:
            raise RuntimeError("prepare() comes before steps() and state()")
        return self._batches

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

    def _check_first(self, report: StepReport) -> None:
        low, high = self._context.facts.first_loss
        if not low <= report.loss <= high:
            self._context.note(
                f"the first training loss is {report.loss:.2f} nats per token; with this model it usually lies between "
                f"{low:g} and {high:g}. A high one often means a wrong renderer or tokenizer, a low one that the model "
                "knows these rows already"
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
