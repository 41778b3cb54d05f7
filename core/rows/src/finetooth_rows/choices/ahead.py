"""Facts for the user before the first step of a decided run: held-out rows that train too, and the expected time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.data.recipe_rows import Decided
from finetooth_toolbox.cli.tables import duration

from finetooth_rows.choices.overlap import overlap, overlap_line
from finetooth_rows.storage.token_rows import positions_of

UTILISATION = 0.4
"""Assumed share of the device's peak: well-tuned training reaches it, small models on large devices do not."""
SAMPLED = 1000
"""Number of counted steps, evenly spread over the data."""
LOOKED_AT = 16
"""Number of data in which images and sounds are looked for."""


@dataclass(frozen=True)
class Time:
    """An estimate of the time of all steps, without loading, evaluation and checkpoints.

    Every row counts in full. An engine that computes the shared beginning of rows once needs less.

    Attributes:
        seconds: if steps run at `utilisation` of the device's peak.
        least: if they ran at the peak itself.
        flops: operations of all steps.
        peak: FLOP/s of all devices that share a step.
        measured: the peak was measured just now; else its maker states it.
    """

    seconds: float
    least: float
    flops: float
    peak: float
    measured: bool
    utilisation: float = UTILISATION


def lines_ahead(job: Decided) -> Iterator[str]:
    """Sentences for the user who is about to train."""
    if both := overlap_line(overlap(job)):
        yield both
    yield time_line(time_ahead(job), device_of(job))


def time_ahead(job: Decided, steps: Sequence[Sequence[int]] | None = None) -> Time | str:
    """The estimate, or the reason for its absence, as the end of a sentence.

    Args:
        steps: positions of the data of some steps; None: rows in their order.
    """
    data, total = () if job.method is None else job.method.data, job.prepared.total_steps
    if not len(data):
        return "the data are read while the run trains"
    if total is None:
        return "the number of steps is open"
    if any(not isinstance(chunk, TokenChunk) for datum in islice(data, LOOKED_AT) for chunk in datum.input):
        return "the tokens of images and sounds are not known before"
    if isinstance(job.cost, str):
        return job.cost
    steps = _steps(data, job.plan.train.batch_size) if steps is None else steps
    if not steps:
        return "the rows fill no step"
    report = job.prepared.report
    flops = job.cost.flops(steps, report.trained_tokens / max(1, report.tokens)) * total / len(steps)
    peak = (job.cost.peak_flops() or 0.0) * devices_of(job)
    if not peak or not flops:
        return "the peak speed of the device is not known"
    measured = str(job.plan.train.precision) not in job.request.place.hardware.peak_flops
    return Time(flops / peak / UTILISATION, flops / peak, flops, peak, measured)


def _steps(data: Sequence[Datum], rows: int) -> list[list[int]]:
    """Positions of the data of each step, in the order of the data.

    Args:
        rows: number per step.
    """
    size = rows * data_of_row(data)
    positions = positions_of(data)
    begins = range(0, len(positions), size)
    return [positions[begin : begin + size].tolist() for begin in begins[:: -(-len(begins) // SAMPLED)]]


def data_of_row(data: Sequence[Datum]) -> int:
    """Number of data per row, such as the two answers of a pair; `train.batch_size` counts rows."""
    group = data[0].group if len(data) else None
    if group is None:
        return 1
    return next((i for i in range(1, len(data)) if data[i].group != group), len(data))


def devices_of(job: Decided) -> int:
    """Number of devices that share a step: one per rank; but all ranks on CPUs share one."""
    place = job.request.place
    own = place.hardware.memory != place.hardware.host_memory
    return place.collective.world if place.collective is not None and own else 1


def device_of(job: Decided) -> str:
    """The computing device with its precision, as text."""
    count = devices_of(job)
    return f"{f'{count} x ' if count > 1 else ''}{job.request.place.hardware.label}, {job.plan.train.precision}"


def time_line(time: Time | str, device: str) -> str:
    """The estimate, in a sentence."""
    if isinstance(time, str):
        return f"time: not estimated, since {time}"
    basis = "measured now" if time.measured else "as its maker states"
    return (
        f"time, estimated: about {duration(time.seconds)} if steps run at {100 * time.utilisation:.0f} % of the "
        f"device's peak speed ({device}: {_rate(time.peak)}, {basis}), {duration(time.least)} at the peak itself; "
        "loading, evaluation and checkpoints come on top, and rows that begin alike may take less"
    )


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"
