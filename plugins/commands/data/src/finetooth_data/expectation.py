"""How long a run will be: in steps and tokens, which is known, and in time, which is estimated."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.data.recipe_rows import Decided
from finetooth_rows.choices.ahead import Time, data_of_row, time_ahead
from finetooth_rows.storage.token_rows import positions_of

from finetooth_data.survey import Survey, training_steps


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
    if survey is None or job.method is None:
        return "the data are read while the run trains"
    if survey.media:
        return "the tokens of images and sounds are not known before"
    data = job.method.data
    return time_ahead(job, training_steps(positions_of(data), job.plan.train, data_of_row(data)))
