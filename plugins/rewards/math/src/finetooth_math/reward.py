"""The reward `math_verify`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetooth_hooks import Options, PluginError
from finetooth_toolbox.text.column_names import column_of
from finetooth_workers.workers import Failure, WorkerError, Workers
from pydantic import Field


class MathOptions(Options):
    """Options of the reward `math_verify`."""

    column: str = "answer"
    """Column with the expected answer, LaTeX or plain (`\\frac{1}{2}`, `x = 5`, `72`), or the letter of a choice."""
    after: str = ""
    """Read only the text after the last occurrence of this (`####`), in the expected answer and in the model's. An
    answer without it scores 0."""
    precision: int = Field(default=6, ge=0)
    """Decimal places to which decimals are compared."""
    limited: Literal["zero", "none"] = "zero"
    """Score of an answer whose comparison takes longer than `time_limit`: 0, or None, which leaves it out."""
    time_limit: float = Field(default=5.0, ge=1)
    """Seconds for an answer: some formulas would take forever."""
    workers: int = Field(default=1, ge=1)
    """Number of processes that compare."""


@dataclass(frozen=True)
class Math:
    """`protocols.Reward`."""

    options: MathOptions
    workers: Workers

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`."""
        return (self.options.column,)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """None for a row whose expected answer is missing or no mathematics.

        Raises:
            DataError: no column has this name.
            PluginError: math-verify cannot be loaded.
        """
        values = column_of(columns, self.options.column, "math_verify", "set its option column")
        scores: list[float | None] = [0.0] * len(completions)
        requests: dict[int, dict[str, str]] = {}
        for i, (completion, expected) in enumerate(zip(completions, values, strict=True)):
            if expected is None:
                scores[i] = None
            elif self.options.after in completion:
                requests[i] = {"expected": self._read(str(expected)), "said": self._read(completion)}
        try:
            results = self.workers(list(requests.values()))
        except WorkerError as error:
            raise PluginError(
                "finetooth-math", f"math-verify cannot be loaded: {error}", action="reinstall it"
            ) from None
        for i, result in zip(requests, results, strict=True):
            scores[i] = self._limited(result) if isinstance(result, Failure) else result
        return scores

    def _read(self, text: str) -> str:
        return text.rpartition(self.options.after)[2].strip() if self.options.after else text

    def _limited(self, failure: Failure) -> float | None:
        """An answer that math-verify cannot read at all, or not in time, is not the expected one."""
        return None if failure.kind != "raised" and self.options.limited == "none" else 0.0


def build(options: MathOptions) -> Math:
    settings = {"precision": options.precision, "time_limit": max(1, math.floor(options.time_limit))}
    # its own limits hold for each parsing and each comparison, the worker's for all of an answer
    return Math(options, Workers("finetooth_math.checking:serve", settings, options.workers, options.time_limit + 1))
