"""What rules share: one answer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import DataError
from finetooth_toolbox.text.column_names import column_of


@dataclass(frozen=True)
class ScoreEach:
    """`protocols.Reward` that scores answer by answer.

    Attributes:
        score: of a completion.
    """

    score: Callable[[str], float | None]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        return [self.score(completion) for completion in completions]


@dataclass(frozen=True)
class ScoreWithColumn:
    """The same, with the value of a column for each completion.

    Attributes:
        reward: its name, for messages.
        column: must be there.
        option: that names it.
    """

    reward: str
    column: str
    score: Callable[[str, Any], float | None]
    option: str = "column"

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`."""
        return (self.column,)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """Score each completion; None leaves one out.

        Raises:
            DataError: no column has this name.
        """
        sampled = "this column exists only where a model samples: use the reward in method.rewards"
        action = f"set the reward's option {self.option}" if self.option else sampled
        values = column_of(columns, self.column, self.reward, action)
        ids = columns.get("row_id") or [f"completion {i + 1}" for i in range(len(completions))]
        return [self._scored(*each) for each in zip(ids, completions, values, strict=True)]

    def _scored(self, row: str, completion: str, value: Any) -> float | None:
        try:
            return self.score(completion, value)
        except DataError as error:
            raise DataError(
                f"{row}: {error.where}", error.problem.removeprefix(f"{error.where}: "), action=error.action
            ) from error
