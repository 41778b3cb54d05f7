"""The `arithmetic` task: a sum or difference of two to four numbers below a hundred. The answer may be negative."""

from __future__ import annotations

from finetooth_tasks.question import Draws, Question


def generate(draws: Draws) -> Question:
    """Draw the number of terms, then the terms and the signs between them."""
    total = draws.between(1, 99)
    expression = str(total)
    for _ in range(draws.between(1, 3)):
        term = draws.between(1, 99)
        if draws.below(2) == 1:
            expression, total = f"{expression} - {term}", total - term
        else:
            expression, total = f"{expression} + {term}", total + term
    return Question(f"What is {expression}? Answer with a number.", str(total))
