"""Questions with a number for an answer, and a tool that calculates."""

from __future__ import annotations

import re
from fractions import Fraction

from finetooth_hooks import Options
from finetooth_hooks.bases import EnvironmentBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.errors import DataError

from finetooth_basicenvironments.arithmetic import NotArithmetic, calculate
from finetooth_basicenvironments.tools import Tool, ToolEpisode, ToolRefused

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class CalculatorOptions(Options):
    """Options of `calculator`."""

    column: str = "answer"
    """Column with the right number."""


class Calculator(EnvironmentBase):
    """Reward 1 where the last number of the answer is the right one, else 0."""

    capabilities = frozenset({"seeded", "concurrent"})

    def __init__(self, options: CalculatorOptions) -> None:
        self._column = options.column

    def episode(self, task: Task, seed: int) -> ToolEpisode:
        """Returns an episode that ends right if the last number equals the row's.

        Raises:
            DataError: the row has no number to compare with.
        """
        right = last_number(str(task.columns.get(self._column, "")))
        if right is None:
            raise DataError(
                self._column, f"{task.columns.get(self._column)!r} holds no number", action="give the row its answer"
            )
        return ToolEpisode(task, TOOL, lambda text: float(last_number(text) == right))


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none."""
    numbers = _NUMBER.findall(text)
    return Fraction(numbers[-1].replace(",", "")) if numbers and len(numbers[-1]) < 100 else None


def _call(expression: str) -> str:
    try:
        return calculate(expression)
    except NotArithmetic as why:
        raise ToolRefused(str(why)) from why


TOOL = Tool("calculate", "Calculates an arithmetic expression, such as 12 * (3 + 4).", "expression", _call)
