"""Whether the numbers of a run that learns from rollouts are in their healthy range, and what to do if they are not.

| metric | healthy | told when, over the last 20 steps |
|---|---|---|
| `reward` | above 0.15 within 20 steps | its mean is 0 or less |
| `frac_reward_zero_std` | below 0.8 | its mean is 0.8 or more |
| `entropy` | 0.05 to 0.5 | its mean is 0.01 or less |
| `kl` | 0 to 0.5 | its mean is above 2 |
| `sampling/sampling_logp_difference/mean` | below 0.1 | its mean is above 1 |
| `clip_ratio/region_mean` | below 0.1 | its mean is above 0.3 |
| `completions/clipped_ratio` | below 0.3 | its mean is above 0.8 |
| gradient norm | 0.001 to 1 | its mean is above 10 |
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from finetooth_hooks.context import Context
from finetooth_hooks.reports import StepReport

STEPS = 20
"""That a mean is taken over; nothing is said before."""


@dataclass(frozen=True)
class Range:
    """The healthy range of a metric.

    Attributes:
        low, high: a mean at or beyond one of them is reported.
        too_low, too_high: the meaning and the next action.
    """

    low: float = float("-inf")
    high: float = float("inf")
    too_low: str = ""
    too_high: str = ""


RANGES: Mapping[str, Range] = {
    "reward": Range(
        low=0.0,
        too_low="above 0.15 is healthy: look at the answers (ft rollouts RUN), try the reward on them, and see that it "
        "gets its columns; a model that is never right cannot begin to learn",
    ),
    "frac_reward_zero_std": Range(
        high=0.8,
        too_high="below 0.8 is healthy: most groups teach nothing; take prompts that are neither always nor never "
        "answered right, more generations, or dynamic_sampling",
    ),
    "entropy": Range(
        low=0.01,
        too_low="0.05 to 0.5 is healthy: the policy says the same all the time; lower optimizer.learning_rate, sample "
        "at temperature 0.8 to 1, or set method.beta",
    ),
    "kl": Range(high=2.0, too_high="0 to 0.5 is healthy: lower optimizer.learning_rate, or raise method.beta"),
    "sampling/sampling_logp_difference/mean": Range(
        high=1.0, too_high="below 0.1 is healthy: the sampler does not have the weights that are trained"
    ),
    "clip_ratio/region_mean": Range(
        high=0.3,
        too_high="below 0.1 is healthy: steps are too large; lower optimizer.learning_rate or method.num_iterations",
    ),
    "completions/clipped_ratio": Range(
        high=0.8, too_high="below 0.3 is healthy: answers are cut off; raise method.max_completion_length"
    ),
    "grad_norm": Range(
        high=10.0, too_high="0.001 to 1 is healthy: lower optimizer.learning_rate, or set train.max_grad_norm to 1"
    ),
}


class Health:
    """Watches the steps of a run; tells each thing once.

    Args:
        ranges: of the metrics that are watched, by name.
    """

    def __init__(self, context: Context, ranges: Mapping[str, Range] = RANGES) -> None:
        self._context, self._ranges = context, ranges
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=STEPS))

    def watch(self, report: StepReport) -> None:
        """Look at a step."""
        for name, value in {**report.metrics, "grad_norm": report.grad_norm}.items():
            if name in self._ranges:
                self._seen[name].append(value)
        for name, seen in self._seen.items():
            if len(seen) == STEPS:
                self._judge(report.step, name, fmean(seen), self._ranges[name])

    def _judge(self, step: int, name: str, mean: float, healthy: Range) -> None:
        advice = healthy.too_low if mean <= healthy.low else healthy.too_high if mean >= healthy.high else ""
        if advice:
            text = f"step {step}: {name} was {mean:.3g} on average over {STEPS} steps; {advice}"
            self._context.note(text, topic=f"health of {name}")
