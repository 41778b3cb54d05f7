"""What is told of a run that learns from rollouts, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import StepReport
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.health import STEPS, Health
from finetooth_rollouts.metrics import batch_metrics


def told(grad_norm: float = 0.5, steps: int = STEPS, **metrics: float) -> list[str]:
    """Notes of a run whose steps all have these numbers."""
    notes: dict[str, str] = {}
    context: Any = SimpleNamespace(note=lambda text, topic: notes.setdefault(topic, text))
    health = Health(context)
    for step in range(1, steps + 1):
        named = {name.replace("__", "/"): value for name, value in metrics.items()}
        health.watch(StepReport(step, 0.0, 0.0, 1, 1, 1, 1e-4, grad_norm, metrics=named))
    return list(notes.values())


def test_a_healthy_run_is_told_nothing() -> None:
    assert told(reward=0.4, frac_reward_zero_std=0.3, entropy=0.3, kl=0.1, clip_ratio__region_mean=0.05) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reward", 0.0, "never right cannot begin"),
        ("frac_reward_zero_std", 0.9, "dynamic_sampling"),
        ("entropy", 0.005, "method.beta"),
        ("kl", 3.0, "raise method.beta"),
        ("sampling__sampling_logp_difference__mean", 1.5, "does not have the weights"),
        ("clip_ratio__region_mean", 0.4, "num_iterations"),
        ("completions__clipped_ratio", 0.9, "raise method.max_completion_length"),
        ("grad_norm", 20.0, "train.max_grad_norm"),
    ],
)
def test_what_is_out_of_range_is_told_once_with_what_to_do(name: str, value: float, said: str) -> None:
    notes = told(**{name: value}, steps=STEPS + 5)
    assert len(notes) == 1 and said in notes[0] and f"{value:.3g}" in notes[0]
    assert told(**{name: value}, steps=STEPS - 1) == []  # too early to say


def test_lengths_are_those_of_all_answers_and_of_those_that_ended() -> None:
    def answer(length: int, outcome: Any) -> Rollout:
        return Rollout("a", "a", (1,), (2,) * length, (0.0,) * length, (0,) * length, "", outcome, reward=1.0)

    drawn = [answer(5, "length"), answer(2, "stop"), answer(4, "stop")]
    numbers = batch_metrics(drawn)
    assert [numbers[f"completions/{of}_length"] for of in ("min", "mean", "max")] == [2.0, 11 / 3, 5.0]
    assert [numbers[f"completions/{of}_terminated_length"] for of in ("min", "mean", "max")] == [2.0, 3.0, 4.0]
    cut = batch_metrics(drawn[:1])
    assert [cut[f"completions/{of}_terminated_length"] for of in ("min", "mean", "max")] == [0.0] * 3
