"""How long a run will be: in steps and tokens, which is known, and in time, which is estimated."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.recipe_rows import Decided
from finetooth_rows.storage.token_rows import positions_of

from finetooth_data.survey import Survey, data_of_row, training_steps

UTILISATION = 0.4
"""Share of the device's peak for which the time is given: what well-laid-out training reaches, small models on large
devices do not."""


@dataclass(frozen=True)
class Time:
    """An estimate of what the steps take; loading, evaluation and checkpoints come on top.

    Attributes:
        seconds: if steps run at `utilisation` of the device's peak.
        least: if they ran at the peak itself.
        flops: operations of all steps.
        peak: FLOP/s of the device.
        measured: the peak was measured just now; else its maker states it.
    """

    seconds: float
    least: float
    flops: float
    peak: float
    measured: bool
    utilisation: float = UTILISATION


@dataclass(frozen=True)
class Expectation:
    """What is ahead.

    Attributes:
        steps: optimizer steps; None if open.
        epochs: passes over the data that they make; None if open.
        tokens: positions that an epoch reads.
        time: of the steps; None if it cannot be estimated.
        reason: why it cannot, as the end of a sentence; empty if it can.
    """

    steps: int | None
    epochs: float | None
    tokens: int
    time: Time | None = None
    reason: str = ""


def expectation(job: Decided, survey: Survey | None) -> Expectation:
    """What is ahead of a job.

    Args:
        survey: of the training data; None if they are read while the run trains.
    """
    prepared = job.prepared
    steps, of_epoch = prepared.total_steps, prepared.steps_per_epoch
    epochs = None if steps is None or not of_epoch else steps / of_epoch
    time = _time(job, survey)
    known, reason = (None, time) if isinstance(time, str) else (time, "")
    return Expectation(steps, epochs, prepared.report.tokens, known, reason)


def _time(job: Decided, survey: Survey | None) -> Time | str:
    """The estimate, or why there is none."""
    report, total = job.prepared.report, job.prepared.total_steps
    if survey is None or job.method is None or not len(job.method.data):
        return "the data are read while the run trains"
    if total is None:
        return "the number of steps is open"
    if survey.media:
        return "what images and sounds take is not known ahead"
    if isinstance(job.cost, str):
        return job.cost
    data = job.method.data
    steps = training_steps(positions_of(data), job.plan.train, data_of_row(data))
    if not steps:
        return "the rows fill no step"
    share = report.trained_tokens / max(1, report.tokens)
    flops = job.cost.flops(steps, share) * total / len(steps)
    peak = job.cost.peak_flops()
    if not peak or not flops:
        return "what the device does at most is not known"
    measured = str(job.plan.train.precision) not in job.request.place.hardware.peak_flops
    return Time(flops / peak / UTILISATION, flops / peak, flops, peak, measured)
