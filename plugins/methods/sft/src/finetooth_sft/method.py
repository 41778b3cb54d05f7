"""The method `sft` trains on conversations and prompts with completions, one optimizer step per batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from finetooth_hooks import Options, Pick, Prepared
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_methods.batched import BatchedMethod
from pydantic import model_validator

from finetooth_sft.rendering import BLANK, DOCUMENT, TRAILING


class SftOptions(Options):
    """Options of `sft`."""

    train_on: TrainOn = "assistant"
    """Which messages train: every `assistant` message, only the `last` one of them, `all` messages, or with `custom`
    only what the rows mark. A message's own `train` overrides this. In rows with prompt and completion the completion
    trains, with `all` also the prompt."""
    train_markup: bool = False
    """With `train_on: all`: whether every token of a conversation trains, roles and markup included, as in trainers
    that mask nothing. In a conversation with its own marks (`train`, weights) only these decide."""
    loss: Pick = "cross_entropy"
    """The loss: a name, or a mapping with `name` and its options."""

    @model_validator(mode="after")
    def _markup_of_all(self) -> SftOptions:
        if self.train_markup and self.train_on != "all":
            raise ValueError(
                "train_markup needs train_on: all, because a message's markup can train only if the message does"
            )
        return self


class Sft(BatchedMethod):
    """Supervised fine-tuning.

    The recipe's renderer renders conversations. A `PromptCompletion` becomes the tokens of prompt, completion and the
    end-of-text token, without chat markup; only the completion and the end token train. All tokens of a `Text` and its
    end token train.
    """

    first_loss_high = "a wrong renderer or tokenizer"
    first_loss_low = "the model knows these rows already"

    def __init__(self, options: SftOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows.

        Raises:
            DataError: a row is broken, is a text with chat markup, or has no trained token.
        """
        rendering = Rendering(
            "finetooth_sft.rendering:build",
            {"train_on": self._options.train_on, "train_markup": self._options.train_markup},
        )
        preparation = self._context.prepare("train", rendering, Limit.of(self._context.train))
        batches = self.begin(preparation.data)
        notes = preparation.report.notes + _notes(preparation.remarks)
        return Prepared(
            batches.total_steps, batches.steps_per_epoch, dataclasses.replace(preparation.report, notes=notes)
        )


def _notes(remarks: Mapping[str, int]) -> tuple[str, ...]:
    """Notes from remarks on the rows.

    Args:
        remarks: number of rows by remark.
    """
    notes: list[str] = []
    if trailing := remarks.get(TRAILING, 0):
        verb = "conversation ends" if trailing == 1 else "conversations end"
        notes.append(
            f"{trailing} {verb} with a message that is not the assistant's: the text after the last answer does "
            "not train"
        )
    if blank := remarks.get(BLANK, 0):
        verb = "conversation has" if blank == 1 else "conversations have"
        notes.append(
            f"{blank} {verb} a part that ends with a blank, where training begins or ends: the blank often "
            "belongs to the token of the next word, which then does not train; move the blank to the beginning "
            "of the next part"
        )
    if texts := remarks.get(DOCUMENT, 0):
        rows = "row is a plain text, which trains" if texts == 1 else "rows are plain texts, which train"
        notes.append(f"{texts} {rows} whole, each by itself (method: pretrain trains them in full windows)")
    others = ((remark, count) for remark, count in sorted(remarks.items()) if remark not in (TRAILING, BLANK, DOCUMENT))
    notes += [f"{count} row{'s' if count != 1 else ''}: {remark}" for remark, count in others]
    return tuple(notes)
