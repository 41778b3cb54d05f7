"""Held-out loss: the mean negative log-likelihood of the targets, weighted by target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks import (
    Context,
    Conversation,
    DataError,
    DataReport,
    Datum,
    Engine,
    EngineError,
    Evaluation,
    Example,
    Options,
    Rendered,
    Text,
)
from finetooth_hooks.examples import TrainOn
from finetooth_hooks.preparation import prepare
from finetooth_hooks.protocols import Examples
from finetooth_hooks.rendering import render_completion, text_opening
from pydantic import Field


class LossOptions(Options):
    """Options of the evaluator `loss`."""

    rows: int | None = Field(default=None, ge=1)
    """Use only the first rows; left out, all of them."""
    train_on: TrainOn = "assistant"
    """Which messages of a conversation count: every `assistant` message, the `last` one, or `all`."""


class LossEvaluator:
    """`protocols.Evaluator`: sum(weight * -logprob) / sum(weight) over all held-out targets, in nats, and exp of it.

    It renders rows itself, so that the number means the same whatever method trains: conversations by the recipe's
    renderer, prompts with completions as `rendering.render_completion` does, documents one by one in windows of
    `train.max_length` in which each token but a document's first is predicted once (no closing token is added: which
    one stands between documents is a method's choice).
    """

    def __init__(self, options: LossOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._data: Sequence[Datum] = ()
        self._rows = 0

    def prepare(self) -> DataReport:
        """Render the held-out rows.

        Raises:
            RecipeError: the recipe gives none.
            DataError: a row is broken, or none can be used.
        """
        examples = self._context.examples("eval")
        chosen = examples.rows if self._options.rows is None else examples.rows[: self._options.rows]
        notes = () if len(chosen) == len(examples.rows) else (f"evaluator loss uses the first {len(chosen)} rows",)
        texts = [(id_, example) for id_, example in chosen if isinstance(example, Text)]
        others = tuple((id_, example) for id_, example in chosen if not isinstance(example, Text))
        if texts and others:
            raise DataError(texts[0][0], "a document among conversations", action="give data.eval rows of one kind")
        if texts:
            report = self._prepare_texts(examples.split, texts)
        else:
            preparation = prepare(
                Examples(examples.split, others, examples.format, examples.source), self._render, self._context.train
            )
            self._data, report = preparation.data, preparation.report
        self._rows = report.used if others else len(texts)
        return replace(report, notes=(*report.notes, *notes))

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """
        Raises:
            EngineError: a log-probability is not finite; names the row.
        """
        if not self._data:
            self.prepare()
        total = weight = 0.0
        for datum, logprobs in zip(self._data, engine.logprobs(self._data), strict=True):
            weights = datum.fields.get("weights", datum.mask).astype(np.float64) * datum.mask
            nll = -float(np.dot(weights, logprobs.astype(np.float64)))
            if not math.isfinite(nll):
                raise EngineError(
                    f"evaluator loss: {datum.id} has a log-probability that is not finite",
                    action="train in another precision or at a lower learning rate",
                )
            total, weight = total + nll, weight + float(weights.sum())
        loss = total / weight
        return Evaluation(
            name="loss",
            step=step,
            metrics={"loss": loss, "perplexity": math.exp(min(loss, 700.0))},
            baselines={"uniform guess": math.log(self._context.facts.vocab_size)},
            rows=self._rows,
            higher_is_better=False,
        )

    def _render(self, example: Example) -> Rendered:
        if isinstance(example, Conversation):
            return self._context.renderer.render(example, train_on=self._options.train_on)
        assert not isinstance(example, Text)
        return render_completion(example, self._context.tokenizer, train_prompt=self._options.train_on == "all")

    def _prepare_texts(self, split: str, texts: list[tuple[str, Text]]) -> DataReport:
        windows = [list(self._windows(id_, example)) for id_, example in texts]
        data = [datum for found in windows for datum in found]
        if not data:
            raise DataError(f"data.{split}", "its texts have no token to predict", action="give longer texts")
        short = [id_ for (id_, _), found in zip(texts, windows, strict=True) if not found]
        self._data = tuple(data)
        reason = "too short to predict a token"
        return DataReport(
            split=split,
            rows=len(texts),
            used=len(data),
            dropped={reason: len(short)} if short else {},
            dropped_ids={reason: tuple(short[:5])} if short else {},
            tokens=sum(map(len, data)),
            trained_tokens=sum(int(datum.mask.sum()) for datum in data),
            longest=max(map(len, data)),
            longest_id=max(data, key=len).id or "",
        )

    def _windows(self, id_: str, example: Text) -> Iterator[Datum]:
        tokenizer, length = self._context.tokenizer, self._context.train.max_length
        tokens = [*text_opening(tokenizer), *tokenizer.encode(example.text)]
        for begin in range(0, len(tokens) - 1, length):
            yield Datum.from_tokens(tokens[begin : begin + length + 1], id=f"{id_}@{begin}")


def build(options: LossOptions, context: Context) -> LossEvaluator:
    """Builder of the evaluator `loss`."""
    return LossEvaluator(options, context)
