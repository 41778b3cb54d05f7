"""The `weekdays` task: the day of the week up to a hundred days from now. It has 1,400 questions in all."""

from __future__ import annotations

from finetooth_tasks.question import Draws, Question

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def generate(draws: Draws) -> Question:
    """Draw today, a distance of 1 to 100 days, and whether it lies ahead or behind."""
    today, distance = draws.below(7), draws.between(1, 100)
    days = f"{distance} day{'' if distance == 1 else 's'}"
    if draws.below(2) == 1:
        return Question(f"Today is {DAYS[today]}. What day was it {days} ago?", DAYS[(today - distance) % 7])
    return Question(f"Today is {DAYS[today]}. What day will it be in {days}?", DAYS[(today + distance) % 7])
