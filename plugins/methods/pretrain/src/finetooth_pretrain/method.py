"""The method `pretrain` trains on documents in windows of `train.max_length`, one optimizer step per batch of
windows."""

from __future__ import annotations

from finetooth_hooks import DataError, DataReport, Options, Pick, Prepared
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Rendering
from finetooth_methods.batched import BatchedMethod
from pydantic import Field

from finetooth_pretrain.windows import Windows

RENDER = "finetooth_pretrain.windows:build"


class PretrainOptions(Options):
    """Options of `pretrain`."""

    loss: Pick = "cross_entropy"
    """The loss: a name, or a mapping with `name` and its options."""
    separator: str = "auto"
    """The token that ends each document. `auto` takes the one of the model's pre-training if the vocabulary shows it
    (`<|endoftext|>`, `<|end_of_text|>`, `</s>`), else the tokenizer's end-of-text token."""
    isolate_documents: bool = True
    """Whether attention and positions stop at the ends of documents, as if each trained alone. Otherwise a document
    sees the ones before it in its window."""
    streaming: bool = False
    """Whether to tokenise documents while training, for data too large to be read first; needs `train.max_steps`."""
    shuffle_buffer: int = Field(default=1000, ge=1)
    """With `streaming`: number of windows that are held and shuffled together; beyond that, the data keeps its
    order."""


def build(options: PretrainOptions, context: Context) -> BatchedMethod:
    if options.streaming:
        from finetooth_pretrain.streamed import StreamedPretrain

        return StreamedPretrain(options, context)
    return Pretrain(options, context)


class Pretrain(BatchedMethod):
    """Continued pre-training.

    Documents are concatenated in the source's order, each with the separator at its end, and cut into windows of
    `train.max_length`; the windows are shuffled. `train.excess_length` has no effect, since no document is too long.
    """

    noun = Windows.noun
    first_loss_high = "a wrong tokenizer or a language the model does not know"
    first_loss_low = "it knows these texts already"

    def __init__(self, options: PretrainOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options

    def prepare(self) -> Prepared:
        """Read, tokenise and cut the documents.

        Raises:
            DataError: a row is not a plain text or is empty, or no token is left to predict.
        """
        length = self._context.train.max_length
        rendering = Rendering(RENDER, {"separator": self._options.separator})
        preparation = self._context.prepare("train", rendering, None)  # no document is too long
        documents, tokens = preparation.report.used, preparation.data.token_count
        excess = self._context.train.excess_length
        if excess != "drop":
            self._context.note(
                f"train.excess_length: {excess} has no effect: method pretrain cuts documents into windows of "
                "train.max_length, so none is too long",
                topic="pretrain: excess_length",
            )
        data = Windows(preparation.data, length, isolate=self._options.isolate_documents)
        if not data:
            raise DataError(
                f"data.{preparation.report.split}",
                f"{documents} document(s) with {tokens} token(s): predicting needs at least 2",
                action="give it more text",
            )
        batches = self.begin(data)
        report = self._report(preparation.report, tokens, length)
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def _report(self, documents: DataReport, tokens: int, length: int) -> DataReport:
        windows = len(self._data)
        last = tokens - 1 - (windows - 1) * length
        note = (
            f"{documents.used:,} {'document' if documents.used == 1 else 'documents'}, {tokens:,} tokens, cut "
            f"into {windows:,} window{'' if windows == 1 else 's'} of {length}"
        )
        segmented = self._options.isolate_documents and documents.rows > 1
        return DataReport(
            split=documents.split,
            rows=documents.rows,
            used=windows,
            dropped=documents.dropped,
            dropped_ids=documents.dropped_ids,
            tokens=tokens - 1,
            trained_tokens=tokens - 1,
            longest=min(length, tokens - 1),
            segmented=segmented,
            notes=(
                note if last == length else f"{note}; the last has {last}",
                *documents.notes,
                *((APART,) if segmented else ()),
            ),
            examples=documents.examples,
            settings=documents.settings,
            settled=documents.settled,
        )


APART = "attention and positions stop at the ends of documents"
