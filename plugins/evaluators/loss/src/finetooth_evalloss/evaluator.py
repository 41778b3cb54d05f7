"""Held-out loss: the mean negative log-likelihood of the targets, weighted by target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks import Context, DataReport, Datum, Engine, EngineError, Evaluation, Options, Text
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.data.preparation import Limit, Rendering
from pydantic import Field

from finetooth_evalloss.windows import Windows


class LossOptions(Options):
    """Options of the evaluator `loss`."""

    rows: int | None = Field(default=None, ge=1)
    """Use only this many rows, the first ones. Left out, all."""
    train_on: TrainOn = "assistant"
    """Which messages of a conversation count: every `assistant` message, the `last` one, or `all`."""


class LossEvaluator(EvaluatorBase):
    """`protocols.Evaluator`: sum(weight * -logprob) / sum(weight) over all held-out targets, in nats, and exp of it.

    It says how rows are rendered, so that the number means the same whatever method trains: conversations by the
    recipe's renderer, prompts with completions as `rendering.render_completion` does, documents one by one in windows
    of `train.max_length` in which each token but a document's first is predicted once (no closing token is added: which
    one stands between documents is a method's choice).
    """

    metrics = frozenset({"loss", "perplexity"})

    def __init__(self, options: LossOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._data: Sequence[Datum] = ()
        self._rows = 0

    @property
    def data(self) -> Sequence[Datum]:
        """What is scored (`protocols.Evaluator`)."""
        return self._data

    def prepare(self) -> DataReport:
        """Render the held-out rows; many are rendered by several processes and kept, see `Context.prepare`.

        Raises:
            RecipeError: the recipe gives none.
            DataError: a row is broken, or none can be used.
        """
        self._compare_with_training()
        texts = any(isinstance(example, Text) for _, example in self._context.examples("eval").rows[:1])
        options = {"train_on": self._options.train_on, "texts": texts}
        preparation = self._context.prepare(
            "eval",
            Rendering("finetooth_evalloss.rendering:build", options),
            None if texts else Limit.of(self._context.train),  # no document is too long: it is cut in windows
            first=self._options.rows,
        )
        report = preparation.report
        if texts:
            windows = Windows(preparation.data, self._context.train.max_length)
            self._data, self._rows, report = windows, report.rows, windows.report(report)
            self.noun = windows.noun
        else:
            self._data, self._rows = preparation.data, report.used
        if preparation.report.rows == self._options.rows:
            report = replace(
                report, notes=(*report.notes, f"evaluator loss uses the first {preparation.report.rows} rows")
            )
        return report

    def _compare_with_training(self) -> None:
        """Say if the run trains other messages than are counted: the two losses are then not of the same thing."""
        trained = self._context.options.get("method", {}).get("train_on", self._options.train_on)
        if trained != self._options.train_on:
            self._context.note(
                f"evaluator loss counts messages by train_on: {self._options.train_on}, and the run trains "
                f"{trained}; to count those, set evaluate.evaluators: [{{name: loss, train_on: {trained}}}]"
            )

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Returns loss and perplexity over the evaluation rows.

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
