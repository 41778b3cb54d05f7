"""The reward: 1 for the expected answer, else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_toolbox.text.column_names import column_of

from finetooth_exactmatch.normalise import AnswerOptions


class RewardOptions(AnswerOptions):
    """Options of the reward `exact_match`."""

    column: str = "answer"
    """Column with the expected answer."""


@dataclass(frozen=True)
class ExactMatch:
    """`protocols.Reward`: 1.0 where the completion's answer equals the expected one after normalisation, else 0.0.

    Attributes:
        options: how an answer is read.
        column: where the expected one stands.
    """

    options: AnswerOptions
    column: str = "answer"

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`."""
        return (self.column,)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """None for a row whose expected answer is missing or has no match of `pattern`.

        Raises:
            DataError: no column has this name.
        """
        values = column_of(columns, self.column, "exact_match", "set the reward's option column")
        return [self.score(completion, expected) for completion, expected in zip(completions, values, strict=True)]

    def score(self, completion: str, expected: Any) -> float | None:
        """One completion against one expected answer."""
        wanted = None if expected is None else self.options.read(str(expected))
        return None if wanted is None else float(self.options.read(completion) == wanted)


def build(options: RewardOptions) -> ExactMatch:
    """Builder of the reward `exact_match`."""
    return ExactMatch(options, options.column)
