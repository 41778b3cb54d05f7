"""The method `pretrain`: documents in windows of `train.max_length`, one optimizer step per batch of windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks import DataError, DataReport, Datum, Engine, Options, Pick, Prepared, StepReport, Text
from finetooth_hooks.context import Context
from finetooth_hooks.preparation import Batches, train_step
from finetooth_hooks.protocols import Examples

from finetooth_pretrain.windows import separator_id, stream, windows


class PretrainOptions(Options):
    """Options of `pretrain`."""

    loss: Pick = "cross_entropy"
    """The loss, a name or a mapping with `name` and its options."""
    separator: str = "auto"
    """The token that closes each document. `auto` takes the one the model was pre-trained with if the vocabulary shows
    it (`<|endoftext|>`, `<|end_of_text|>`, `</s>`), else the tokenizer's end-of-text token."""


def build(options: PretrainOptions, context: Context) -> Pretrain:
    return Pretrain(options, context)


class Pretrain:
    """Continued pre-training.

    Documents follow each other in the source's order, each closed by the separator, and are cut in windows of
    `train.max_length`; the order of the windows is shuffled. `train.excess_length` has nothing to decide: no document
    is too long.
    """

    def __init__(self, options: PretrainOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._loss = context.loss(options.loss, setting="method.loss")
        self._data: tuple[Datum, ...] = ()
        self._batches: Batches | None = None
        self._restored: Mapping[str, Any] | None = None

    def prepare(self) -> Prepared:
        """Read, tokenise and cut the documents.

        Raises:
            DataError: a row is no plain text or is empty, or there is nothing to predict.
        """
        examples = self._context.examples("train")
        documents = _documents(examples)
        length = self._context.train.max_length
        tokenizer = self._context.tokenizer
        tokens, starts = stream(documents, tokenizer, separator_id(tokenizer, self._options.separator))
        self._data = tuple(windows(tokens, starts, length))
        if not self._data:
            raise DataError(
                f"data.{examples.split}",
                f"{len(documents)} document(s) with {len(tokens)} token(s): predicting needs at least 2",
                action="give it more text",
            )
        self._batches = batches = Batches.of(len(self._data), self._context.train)
        if self._restored is not None:
            batches.restore(self._restored)
        report = self._report(examples.split, len(documents), len(tokens), length)
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

    def _report(self, split: str, documents: int, tokens: int, length: int) -> DataReport:
        last = len(self._data[-1])
        note = (
            f"{documents:,} {'document' if documents == 1 else 'documents'}, {tokens:,} tokens, cut in "
            f"{len(self._data):,} windows of {length}"
        )
        positions = sum(len(datum) for datum in self._data)
        return DataReport(
            split=split,
            rows=documents,
            used=len(self._data),
            tokens=positions,
            trained_tokens=positions,
            longest=max(len(datum) for datum in self._data),
            notes=(note if last == length else f"{note}; the last has {last}",),
        )

    def _check_first(self, report: StepReport) -> None:
        low, high = self._context.facts.first_loss
        if not low <= report.loss <= high:
            self._context.note(
                f"the first training loss is {report.loss:.2f} nats per token; with this model it usually lies between "
                f"{low:g} and {high:g}. A high one often means a wrong tokenizer or a language the model does not "
                "know, a low one that it knows these texts already"
            )


def _documents(examples: Examples) -> list[tuple[str, str]]:
    """Ids and texts.

    Raises:
        DataError: a row is no plain text, or empty.
    """
    documents = []
    for id_, example in examples.rows:
        if not isinstance(example, Text):
            raise DataError(
                id_,
                "the row is a conversation or a prompt with its completion, and method pretrain learns from plain text",
                action="set method: sft, or data.format: text",
            )
        if not example.text:
            raise DataError(id_, "the text is empty", action="remove the row")
        documents.append((id_, example.text))
    return documents
