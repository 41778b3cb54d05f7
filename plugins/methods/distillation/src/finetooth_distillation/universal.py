"""The method `uld` learns from a teacher with another tokenizer, at positions where both have read the same text.

The vocabularies have no common tokens, so probabilities are compared in descending order (Boizard et al., 2024,
arXiv:2402.12030, equation 4): that of one model's likeliest token with that of the other's, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from finetooth_hooks import (
    Contribution,
    DataError,
    Engine,
    LossData,
    LossFn,
    LossResult,
    LossState,
    Metric,
    Options,
    Outputs,
    Prepared,
    StepReport,
)
from finetooth_hooks import arrays as xp
from finetooth_hooks.context import Context, Opened
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import Conversation, Example, PromptCompletion
from finetooth_hooks.models import Tokenizer
from finetooth_hooks.protocols import Method
from finetooth_methods.batched import BatchedMethod, train_step
from finetooth_rollouts.data import prompt_and_answer
from finetooth_toolbox.combined_losses import combined
from finetooth_toolbox.messages.prompts import render_completion
from numpy.typing import NDArray
from pydantic import Field

WINDOW = 12
"""Number of tokens before a token that are decoded with it, so that special rules for the beginning of a text do not
matter."""
BROKEN = "\ufffd"
"""A decoder's character for incomplete bytes."""


class UniversalOptions(Options):
    """Options of `uld`."""

    teacher: str = Field(min_length=1)
    """A run, or a model's name, folder or hub id, with any tokenizer; it reads the rows in its own template."""
    align: Literal["text", "length"] = "text"
    """Which tokens of an answer are compared. `text`: tokens before which both models have read the same text.
    `length`: the first with the first, the second with the second, up to the end of the shorter answer."""
    top_k: int = Field(default=64, ge=1)
    """Number of largest probabilities to compare; the rest counts as one."""
    weight: float = Field(default=1.5, gt=0)
    """Weight of this loss, which is added to the cross entropy of the rows' answers."""


def build_loss(options: Options) -> LossFn:
    """Builder of `sorted_probabilities`."""
    return sorted_probabilities


def sorted_probabilities(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """The sum over positions of |p_i - q_i|, with p and q in descending order, divided by the weights of all targets.

    Args:
        outputs: `logits` (S, T, V).
        data: fields `weights`, `aligned` (S, T), 1 at compared positions, and `teacher_sorted` (S, T, K + 1): the
            teacher's largest probabilities, and the remaining probability.
    """
    mask, theirs = data.mask, data.fields["teacher_sorted"]
    theirs = theirs[..., None] if theirs.ndim == mask.ndim else theirs  # K is 0: all tokens are the rest
    z = xp.where(mask[..., None], outputs["logits"], 0.0)
    p = xp.sort(xp.exp(z - xp.logsumexp(z, axis=-1, keepdims=True)), ascending=False)[..., : theirs.shape[-1] - 1]
    p = xp.concat([p, 1.0 - xp.sum(p, axis=-1, keepdims=True)], axis=-1)
    counted = xp.where(mask, data.fields["aligned"], 0.0)
    apart = xp.sum(xp.abs(p - theirs), axis=-1) * counted
    parts = {"sorted_probabilities": Contribution(xp.sum(data.fields["weights"] * apart), per="weights")}
    seen = xp.sum(xp.stop_gradient(counted))
    return LossResult(parts, {"aligned": Metric(seen, xp.sum(xp.astype_like(mask, apart)))})


class Universal(BatchedMethod):
    """One optimizer step for each batch of rows; the teacher reads each batch before it."""

    def __init__(self, options: UniversalOptions, context: Context) -> None:
        parts = [(context.loss("cross_entropy", setting="method"), 1.0),
                 (context.loss("sorted_probabilities", setting="method"), options.weight)]  # fmt: skip
        super().__init__(context, combined(parts))
        self._options, self._k = options, min(options.top_k, context.facts.vocab_size - 1)
        self._rows: Method = context.build("method", {"name": "sft", "train_on": "last"}, setting="method")
        self._examples: Mapping[str, Example] = {}

    @cached_property
    def _teacher(self) -> Opened:
        return self._context.open(self._options.teacher)

    def prepare(self) -> Prepared:
        """Read and tokenise the rows, as `sft` does.

        Raises:
            DataError: a row is broken, or has nothing to train on.
        """
        prepared = self._rows.prepare()
        self.begin(self._rows.data)
        self._examples = dict(self._context.examples("train").rows)
        return prepared

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch."""
        batches = self._begun()
        for indices in batches:
            data = self._taught([self._data[row] for row in indices])
            yield train_step(engine, data, self._loss, batches.epoch)

    def _taught(self, data: Sequence[Datum]) -> list[Datum]:
        """The data with the fields of `sorted_probabilities`."""
        theirs = [self._read(datum.id) for datum in data]
        outputs = self._teacher.engine.forward(theirs, returns=("logits",), train=False).outputs
        updated = []
        for datum, read, of in zip(data, theirs, outputs, strict=True):
            answers = prompt_and_answer(datum)[1], prompt_and_answer(read)[1]
            own, other = self._pairs(*answers)
            compared, taught = np.zeros(len(datum)), np.zeros((len(datum), self._k + 1))
            places = last_stretch(datum, len(answers[0]))[own]
            compared[places] = 1.0
            taught[places] = greatest(of["logits"][last_stretch(read, len(answers[1]))[other]], self._k)
            updated.append(replace(datum, fields={**datum.fields, "aligned": compared, "teacher_sorted": taught}))
        return updated

    def _pairs(self, own: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int]]:
        """Indices of the compared tokens of two answers."""
        if self._options.align == "length":
            both = list(range(min(len(own), len(theirs))))
            return both, both
        return aligned(starts(own, self._context.tokenizer), starts(theirs, self._teacher.context.tokenizer))

    def _read(self, id_: str) -> Datum:
        """A row in the teacher's template and tokens.

        Raises:
            DataError: the teacher's template or tokenizer cannot represent the row.
        """
        example, context = self._examples[id_], self._teacher.context
        if isinstance(example, Conversation):
            rendered = context.renderer.render(example, train_on="last")
        elif isinstance(example, PromptCompletion):
            rendered = render_completion(example, context.tokenizer, markup=self._context.markup)
        else:
            raise DataError(
                id_, f"the row is {example.called}, and uld learns from conversations or prompts with completions",
                action="set data.format to one that reads a prompt and its answer",
            )  # fmt: skip
        return Datum.from_tokens(rendered.tokens, rendered.weights, id=id_)


def starts(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Number of characters before each token; -1 if a token begins inside a character."""
    positions, so_far = [], 0
    for place, _ in enumerate(tokens):
        window = tokens[max(0, place - WINDOW) : place]
        before = tokenizer.decode(window, skip_special=True)
        positions.append(-1 if before.endswith(BROKEN) else so_far)
        so_far += len(tokenizer.decode([*window, tokens[place]], skip_special=True)) - len(before)
    return positions


def aligned(own: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions with the same number of characters before them, each once."""
    other = {start: place for place, start in reversed(list(enumerate(theirs))) if start >= 0}
    pairs = {start: place for place, start in reversed(list(enumerate(own))) if start in other}
    return sorted(pairs.values()), [other[own[place]] for place in sorted(pairs.values())]


def last_stretch(datum: Datum, count: int) -> NDArray[np.int64]:
    """Positions whose targets are the last `count` tokens that train."""
    return np.flatnonzero(datum.mask)[-count:]


def greatest(logits: NDArray[Any], k: int) -> NDArray[np.float64]:
    """(n, K + 1) from logits (n, V): the largest probabilities in descending order, padded with 0, and the remaining
    probability."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p = -np.sort(-p / p.sum(-1, keepdims=True), axis=-1)[:, :k]
    p = np.pad(p, ((0, 0), (0, k - p.shape[1])))
    return np.concatenate([p, 1 - p.sum(-1, keepdims=True)], axis=-1)
