"""The goals and what was reached: each a figure from the result files, its text, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import figures
from harness.flops import Shape
from harness.results import Results

NOT_MEASURED = "not measured"
MINE, DEFAULTS = "finetooth bf16", "TRL defaults"
NEAR_TIE = {"bf16": 0.25, "fp32": 0.005}
"""Nats. Two bf16 logits of this model closer than that may change places by rounding alone: a bf16 logit near 16 stands
for a range of 0.0625, and each layer rounds too."""


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        workload: letter and measure.
        goal: in words.
        reached: in words.
        met: None where it was not measured.
    """

    workload: str
    goal: str
    reached: str
    met: bool | None


def table(results: Results) -> list[Goal]:
    """Every goal."""
    return [
        *_lora(results.get("lora")),
        *_training("(b)", results.get("full")),
        *_training("(c)", results.get("pretrain")),
        *_scoring(results.get("scoring")),
        *_generation(results.get("generation")),
        _help(results.get("startup")),
        *_scaling(results.get("scaling")),
        _overhead(results.get("overhead")),
        *(_estimate(key, results.get(name)) for key, name in (("(a)", "lora"), ("(b)", "full"), ("(c)", "pretrain"))),
    ]


def ratio_text(values: Sequence[float]) -> str:
    """Median, and the range if there are several."""
    if not values:
        return NOT_MEASURED
    middle = f"{statistics.median(values):.2f}x"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _ratio(
    workload: str, goal: str, file: Mapping[str, Any] | None, first: str, second: str, field: str, bound: float
) -> Goal:
    """A goal on a ratio: a bound from 1 up is a least, one below 1 a most."""
    values = figures.ratios(file["runs"], first, second, field) if file else []
    if not values:
        return Goal(workload, goal, NOT_MEASURED, None)
    middle = statistics.median(values)
    return Goal(workload, goal, ratio_text(values), middle >= bound if bound >= 1 else middle <= bound)


def _lora(file: Mapping[str, Any] | None) -> list[Goal]:
    found = [
        _ratio("(a) tokens/s", "≥ 5x TRL defaults", file, MINE, DEFAULTS, "tokens_per_second", 5),
        _ratio("(a) peak memory", "≤ 0.4x TRL defaults", file, MINE, DEFAULTS, "peak_memory_bytes", 0.4),
        _ratio("(a) time to first step", "≤ 0.4x TRL defaults", file, MINE, DEFAULTS, "first_step_s", 0.4),
    ]
    pairs = (
        ("(a) losses in bf16", "≤ 5e-3 a step, 1e-3 on average", MINE, DEFAULTS, 5e-3, 1e-3),
        ("(a) losses in fp32", "≤ 1e-4 a step", "finetooth fp32", "TRL fp32", 1e-4, 1e-4),
    )
    for workload, goal, first, second, each, mean in pairs:
        difference = figures.losses(file["runs"], first, second) if file else None
        if difference is None:
            found.append(Goal(workload, goal, NOT_MEASURED, None))
            continue
        met = difference.largest <= each and abs(difference.mean_signed) <= mean
        text = f"{difference.largest:.1e} at most, {abs(difference.mean_signed):.1e} on average"
        found.append(Goal(workload, goal, text, met))
    part = figures.share(file["runs"], MINE, Shape.of(file["config"])) if file else None
    goal = "≥ 35 %, stretch 50 %"
    text = NOT_MEASURED if part is None else f"{100 * part:.0f} %"
    found.append(Goal("(a) share of the bf16 GEMM rate", goal, text, None if part is None else part >= 0.35))
    return found


def _training(key: str, file: Mapping[str, Any] | None) -> list[Goal]:
    return [_ratio(f"{key} tokens/s", "≥ 3x TRL defaults", file, MINE, DEFAULTS, "tokens_per_second", 3)]


def _scoring(file: Mapping[str, Any] | None) -> list[Goal]:
    field = "tokens_per_second"
    same, default = "transformers bf16", "transformers default (fp32)"
    found = [
        _ratio("(d) tokens/s, same dtype", "≥ 3x a plain transformers forward", file, MINE, same, field, 3),
        _ratio("(d) tokens/s, its default", "≥ 3x a plain transformers forward", file, MINE, default, field, 3),
    ]
    goal = "flat in the vocabulary"
    workload = "(d) working memory, vocabulary x4"
    small = figures.median(file["runs"], MINE, "working_bytes") if file else None
    large = figures.median(file["runs"], f"{MINE}, vocabulary x4", "working_bytes") if file else None
    if not small or large is None:
        return [*found, Goal(workload, goal, NOT_MEASURED, None)]
    text = f"{large / small:.2f}x ({small / 2**20:.0f} to {large / 2**20:.0f} MiB)"
    return [*found, Goal(workload, goal, text, large / small <= 1.1)]


def _generation(file: Mapping[str, Any] | None) -> list[Goal]:
    found = []
    for precision in ("bf16", "fp32"):
        ours, theirs = f"finetooth {precision}", f"transformers {precision}"
        for mode in ("greedy", "sampled"):
            field = f"modes.{mode}.tokens_per_second"
            found.append(_ratio(f"(e) tokens/s, {mode}, {precision}", "≥ 2x generate", file, ours, theirs, field, 2))
        parting = (file or {}).get("comparisons", {}).get(precision)
        workload, goal = f"(e) greedy tokens, {precision}", "equal but at near-ties"
        if parting is None:
            found.append(Goal(workload, goal, NOT_MEASURED, None))
            continue
        wide = [one for one in parting["parted"] if abs(one["gap"]) > NEAR_TIE[precision]]
        equal = parting["rows"] - len(parting["parted"])
        text = f"{equal} of {parting['rows']} equal, {len(parting['parted']) - len(wide)} part at a near-tie, "
        found.append(Goal(workload, goal, f"{text}{len(wide)} elsewhere", not wide))
    return found


def _help(file: Mapping[str, Any] | None) -> Goal:
    seconds = [s for run in (file or {}).get("runs", []) for s in run.get("seconds", {}).get("ft --help", [])]
    if not seconds:
        return Goal("(f) `ft --help`", "≤ 0.2 s", NOT_MEASURED, None)
    middle = statistics.median(seconds)
    return Goal("(f) `ft --help`", "≤ 0.2 s", f"{middle:.2f} s", middle <= 0.2)


def curve(file: Mapping[str, Any] | None, name: str, *, ours: bool = True) -> list[Mapping[str, Any]]:
    """Runs of one scaling curve by x: medians stand for rounds."""
    runs = [run for run in (file or {}).get("runs", []) if run.get("curve") == name and not run.get("failed")]
    runs = [run for run in runs if ours != run["contender"].endswith("datasets.map")]
    by_x: dict[float, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_x.setdefault(run["x"], []).append(run)
    return [sorted(by_x[x], key=_seconds)[len(by_x[x]) // 2] for x in sorted(by_x)]


def _seconds(run: Mapping[str, Any]) -> float:
    return float(run.get("train_s", run.get("seconds", 0.0)))


def _scaling(file: Mapping[str, Any] | None) -> list[Goal]:
    found = []
    lengths = curve(file, "length")
    workload, goal = "(g) time against length", "linear in tokens, attention apart"
    if len(lengths) < 2 or file is None:
        found.append(Goal(workload, goal, NOT_MEASURED, None))
    else:
        shape = Shape.of(file["config"])
        first, last = lengths[0], lengths[-1]
        slower = (last["train_s"] / last["tokens"]) / (first["train_s"] / first["tokens"])
        work = [(figures.executed(run, shape) or 0.0) / run["tokens"] for run in (first, last)]
        more = work[1] / work[0]
        text = f"{slower:.2f}x the time a token at {last['x']:,} as at {first['x']:,}, which is {more:.2f}x the FLOPs"
        found.append(Goal(workload, goal, text, slower <= 1.25 * more))
    rows = curve(file, "rows")
    workload, goal = "(g) preparing 10^6 rows", "constant memory, cached, all cores"
    if not rows or rows[-1]["x"] < 1_000_000:
        return [*found, Goal(workload, goal, NOT_MEASURED, None)]
    last, small = rows[-1], rows[max(0, len(rows) - 3)]
    growth = last["peak_memory_bytes"] / small["peak_memory_bytes"]
    text = (
        f"{last['rows_per_second']:,.0f} rows/s; {growth:.2f}x the memory of {small['x']:,} rows; "
        f"again from the cache in {last['warm_s'] / last['seconds']:.2f}x the time"
    )
    return [*found, Goal(workload, goal, text, growth <= 1.5 and last["warm_s"] <= 0.5 * last["seconds"])]


def _overhead(file: Mapping[str, Any] | None) -> Goal:
    workload, goal = "Hooks and tracking", "< 1 % of a step"
    part = overhead(file)
    if part is None:
        return Goal(workload, goal, NOT_MEASURED, None)
    return Goal(workload, goal, f"{100 * part:.2f} %", part < 0.01)


def overhead(file: Mapping[str, Any] | None, contender: str = "three trackers, two plugins") -> float | None:
    """Share of a step that telling trackers and plugins takes, all rounds together; None if it was not measured."""
    runs = list(figures.of((file or {}).get("runs", []), contender).values())
    told, steps = (sum(sum(run[name]) for run in runs) for name in ("tell_s", "step_s"))
    return told / steps if steps else None


def _estimate(key: str, file: Mapping[str, Any] | None) -> Goal:
    workload, goal = f"{key} the plan's memory estimate", "within 20 % of the peak"
    runs = figures.of(file["runs"], MINE) if file else {}
    told = [run for run in runs.values() if "memory_estimate_bytes" in run]
    parts = [run["memory_estimate_bytes"] / run["peak_memory_bytes"] for run in told]
    if not parts:
        return Goal(workload, goal, NOT_MEASURED, None)
    middle = statistics.median(parts)
    return Goal(workload, goal, f"{100 * (middle - 1):+.0f} %", abs(middle - 1) <= 0.2)
