"""The method `pretrain`: documents in windows of `train.max_length`, one optimizer step per batch of windows."""

from __future__ import annotations

from finetooth_hooks import DataError, DataReport, Options, Pick, Prepared, Text
from finetooth_hooks.batched import BatchedMethod
from finetooth_hooks.context import Context
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


class Pretrain(BatchedMethod):
    """Continued pre-training.

    Documents follow each other in the source's order, each closed by the separator, and are cut in windows of
    `train.max_length`; the order of the windows is shuffled. `train.excess_length` has nothing to decide: no document
    is too long.
    """

    first_loss_high = "a wrong tokenizer or a language the model does not know"
    first_loss_low = "it knows these texts already"

    def __init__(self, options: PretrainOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options

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
        data = tuple(windows(tokens, starts, length))
        if not data:
            raise DataError(
                f"data.{examples.split}",
                f"{len(documents)} document(s) with {len(tokens)} token(s): predicting needs at least 2",
                action="give it more text",
            )
        batches = self.begin(data)
        report = self._report(examples.split, len(documents), len(tokens), length)
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

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
