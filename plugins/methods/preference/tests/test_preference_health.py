"""Each thing that goes wrong is told once, and a healthy run tells nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_hooks import StepReport
from finetooth_methods.preference_health import Health


def watch(context: Any, steps: int, grad_norm: float = 1.0, **metrics: Callable[[int], float]) -> list[str]:
    health = Health(context)
    names = {"accuracies": "rewards/accuracies", "margins": "rewards/margins", "chosen": "logps/chosen"}
    for step in range(1, steps + 1):
        values = {names[name]: of(step) for name, of in metrics.items()}
        health.watch(StepReport(step, 0.0, 0.5, 1, 1, 1, 1e-3, grad_norm, metrics=values))
    return list(context.notes)


def test_a_healthy_run_is_quiet(make_context: Any) -> None:
    notes = watch(
        make_context([]),
        200,
        accuracies=lambda s: 0.5 + s / 500,
        margins=lambda s: s / 50,
        chosen=lambda s: -50 - s / 20,
    )
    assert notes == []


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"accuracies": lambda s: 0.4 + 0.2 * (s % 2)}, "step 50: the chosen answer had the higher reward in 50%"),
        ({"margins": lambda s: float(s)}, "step 25: rewards of chosen and rejected answers are 20.5 apart"),
        ({"chosen": lambda s: -30.0 - s}, "step 47: chosen answers lost likelihood, from -35.5 to -71.5 nats"),
    ],
)
def test_what_goes_wrong_is_told_once(make_context: Any, metrics: Any, text: str) -> None:
    (note,) = watch(make_context([]), 200, **metrics)
    assert note.startswith(text) or text.partition(": ")[2] in note


def test_a_steep_gradient_is_told_once(make_context: Any) -> None:
    (note,) = watch(make_context([]), 5, grad_norm=250.0)
    assert "the gradient norm is 250" in note
