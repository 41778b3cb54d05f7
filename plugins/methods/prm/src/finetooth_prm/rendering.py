"""Renders an example to tokens for `prm`, also in worker processes.

Weights carry the labels until the method makes data: the end of a step has weight 1 + its label, other tokens 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks import DataError, Datum, Example, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Stepwise
from finetooth_hooks.data.preparation import Render
from finetooth_rows.storage.lazy import LazySequence
from finetooth_toolbox.messages.answers import has_words, separator_tokens, step_tokens

NO_STEPS = "method prm learns from answers in steps, each with a label"


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an answer in steps. Unusable rows are refused by name or, with `unusable: drop`, left out and counted.

    Args:
        options: `separator`, `train_on` and `unusable`, as in `PrmOptions`.
    """
    separator = separator_tokens(options["separator"], context.tokenizer, "method.separator")
    last_only, drops = options["train_on"] == "last", options["unusable"] == "drop"

    def refused(problem: str, action: str) -> Rendered:
        if drops:
            return Rendered((), (), left_out=problem)
        raise DataError("", problem, action=f"{action}, or set method.unusable: drop")

    def render(example: Example) -> Rendered:
        if not isinstance(example, Stepwise):
            raise DataError(
                "", f"the row has no steps: {NO_STEPS}", action="give rows with prompt, completions and labels"
            )
        if len(example.steps) != len(example.labels):
            return refused("another number of labels than of steps", "give every step one label")
        if not example.steps:
            return refused("it has no steps", "remove the row")
        if not all(has_words(step) for step in example.steps):
            return refused("a step is empty", "remove the step and its label")
        if not all(label is None or 0 <= float(label) <= 1 for label in example.labels):
            return refused("a label is not true, false or a number from 0 to 1", "write every label so")
        tokens, ends = step_tokens(example.prompt, example.steps, context, separator)
        weights = [0.0] * (len(tokens) + 1)  # one more token, which is not read: see `answers.scored_at_end`
        for end, label in list(zip(ends, example.labels, strict=True))[-1 if last_only else 0 :]:
            if label is not None:  # None: a step without a label, before labelled ones
                weights[end + 1] = 1.0 + float(label)
        return Rendered((*tokens, tokens[-1]), tuple(weights))

    return render


class LabelledSteps(LazySequence[Datum]):
    """Data with labels in a separate field.

    Args:
        data: whose weights carry the labels.
    """

    noun = "row"

    def __init__(self, data: Sequence[Datum]) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def make(self, place: int) -> Datum:
        datum = self._data[place]
        weights = np.asarray(datum.fields["weights"], np.float32)
        labels = np.where(datum.mask, weights - 1.0, 0.0).astype(np.float32)
        return replace(datum, fields={"weights": datum.mask.astype(np.float32), "labels": labels})
