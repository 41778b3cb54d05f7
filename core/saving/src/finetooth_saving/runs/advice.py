"""Finds faults in the reports of a run, running or ended, with the next action.

The bounds are common practice in fine-tuning: gradients above 100 are unstable, a loss several times its own median is
a spike. An uncertain rule names what to inspect, not what to change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from finetooth_saving.runs.recorded import Point, Recorded

STILL = 3
"""Number of steps without any gradient that shows that nothing trains."""
UNSTABLE = 100.0
"""Gradient norm before clipping above which training is unstable."""
SPIKE = 3.0
"""Ratio of a spike's loss to the median of the steps before it."""
WINDOW = 20
"""Number of steps for a median."""
PLATEAU = 0.01
"""Smallest relative fall of the loss over the second half of the steps; less is a plateau."""
LONG = 60
"""Smallest number of steps for a plateau."""
DECAY = 0.1
"""Weight decay above which small adapters learn too little."""
HIGHEST_RATE = 1.0
"""A learning rate that is too high for any optimizer; those that find their own rate use 1 as a factor."""


def advice(run: Recorded) -> list[str]:
    """One line per fault, the gravest first; empty without faults."""
    series = run.series()
    losses = series.get("loss", [])
    problems = [*_not_finite(run), *_gradients(run), *_spikes(losses), *_overfits(series)]
    return [*problems, *([] if problems else _plateau(losses, _weight_decay(run)))]


def _not_finite(run: Recorded) -> Iterator[str]:
    ended = re.search(r"^(.*) is (?:nan|-?inf) at step (\d+)", run.reason)  # a step that stopped the run has no report
    broken = [(index, int(report["step"]), report.get("not_finite") or ()) for index, report in enumerate(run.steps)]
    broken += [(len(run.steps), int(ended[2]), ("loss",))] if ended else []
    for index, step, names in broken:
        if "loss" in names or "grad_norm" in names:
            where = _why_not_finite(run.steps[:index])
            yield f"step {step}: {', '.join(names)} is not finite; {where}"
            break
    bad = run.result.get("bad_steps") or ()
    if bad:
        yield (
            f"{len(bad)} step{'s were' if len(bad) > 1 else ' was'} not finite, the first after step "
            f"{bad[0].get('step', '?')}; result.json names the rows"
        )


def _why_not_finite(before: Sequence[Mapping[str, Any]]) -> str:
    """The probable cause of a step that was not finite, from the steps before it, with the next action."""
    rows = "look at the step's rows for empty or extreme ones (ft data check), and try train.precision: fp32"
    if not before:
        return f"no update came before it, so the learning rate is not why: see ft doctor weights MODEL, {rows}"
    rate = max(float(report.get("learning_rate") or 0) for report in before)
    if rate > HIGHEST_RATE:
        return (
            f"the learning rate was {rate:.3g}, which is far too high: set "
            "optimizer.learning_rate to what ft init proposes, about 2e-4 for an adapter and 2e-5 for all weights"
        )
    lower = "lower optimizer.learning_rate by 2 to 5, or lengthen the warmup"
    for name, what in (("grad_norm", "gradients"), ("loss", "the loss")):
        values = [float(report[name]) for report in before[-5:] if report.get(name)]
        if len(values) > 1 and values[-1] > (10 if name == "grad_norm" else SPIKE) * values[0] > 0:
            return f"{what} grew to {values[-1]:.3g} before: {lower}"
    return f"gradients were calm before: {rows}"


def _gradients(run: Recorded) -> Iterator[str]:
    norms = [(int(report["step"]), report.get("grad_norm")) for report in run.steps]
    if len(norms) >= STILL and all(norm == 0 for _, norm in norms[-STILL:]):
        yield (
            f"grad_norm is 0 in the last {STILL} steps: nothing trains; see which parameters the adapter trains, and "
            "which tokens count (ft data preview)"
        )
    recent = [float(norm) for _, norm in norms[-WINDOW:] if norm is not None]
    if len(recent) >= 5 and median(recent) > UNSTABLE:
        yield (
            f"grad_norm is {median(recent):.3g} in the middle of the last {len(recent)} steps, above "
            f"{UNSTABLE:g}: lower "
            "optimizer.learning_rate by 2 to 5, or lengthen the warmup"
        )


def _spikes(losses: list[Point]) -> Iterator[str]:
    spikes = []
    for index in range(5, len(losses)):
        usual = median(value for _, value in losses[max(0, index - WINDOW) : index])
        step, value = losses[index]
        if usual > 0 and value > SPIKE * usual and value - usual > 0.5:
            spikes.append((step, value, usual))
    if spikes:
        step, value, usual = max(spikes, key=lambda spike: spike[1] / spike[2])
        others = f" ({len(spikes)} such steps)" if len(spikes) > 1 else ""
        yield (
            f"step {step}: the loss jumped to {value:.3g} from about {usual:.3g}{others}: one bad or very long "
            "row, or too "
            "high a learning rate; look at the rows with ft data check, or lower optimizer.learning_rate by 2 to 5; if "
            "it stays, try train.precision: fp32 and a smaller train.batch_size, and ft doctor weights MODEL"
        )


def _overfits(series: Mapping[str, list[Point]]) -> Iterator[str]:
    held_out, losses = series.get("eval/loss", []), series.get("loss", [])
    if len(held_out) < 3 or not losses:
        return
    at, best = min(held_out, key=lambda point: point[1])
    worse = [value for step, value in held_out if step > at]
    fell = losses[-1][1] < next((value for step, value in losses if step >= at), math.inf)
    if len(worse) >= 2 and worse[-1] > best * 1.01 and fell:
        yield (
            f"eval/loss was best after step {at}, {best:.4g}, and is {worse[-1]:.4g} while the training loss fell: it "
            "overfits; set train.early_stopping and checkpoint.select_on: eval/loss, train fewer epochs, or give the "
            "adapter a rank of 8 to 32 and a dropout of 0.05, and optimizer.weight_decay 0.01 to 0.1"
        )


def _weight_decay(run: Recorded) -> float:
    """The recipe's weight decay; 0 if it sets none."""
    optimizer = run.plan.get("recipe", {}).get("optimizer")
    decay = optimizer.get("weight_decay") if isinstance(optimizer, Mapping) else None
    return float(decay) if isinstance(decay, int | float) else 0.0


def _plateau(losses: list[Point], weight_decay: float) -> Iterator[str]:
    values = [value for _, value in losses]
    if len(values) < LONG:
        return
    half = len(values) // 2
    early, late = fmean(values[half : half + half // 3]), fmean(values[-(half // 3) :])
    if early > 0.3 and late > early * (1 - PLATEAU):
        yield (
            f"the loss stands still at {late:.3g} over the second half of the steps: raise "
            "optimizer.learning_rate by 2 "
            "to 5, warm up over 5 to 10 % of the steps, and see which tokens train (ft data preview)"
            + (f"; weight_decay {weight_decay:g} holds an adapter back, 0.01 will do" if weight_decay > DECAY else "")
        )
