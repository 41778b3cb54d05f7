"""Figures from runs: medians, ratios of pairs, losses side by side, shares of the machine's rate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import flops
from harness.flops import Shape, Work

Run = Mapping[str, Any]


def of(runs: Sequence[Run], contender: str) -> dict[int, Run]:
    """Runs of a contender that did not fail, by round."""
    return {run["round"]: run for run in runs if run["contender"] == contender and not run.get("failed")}


def value(run: Run, field: str) -> float | None:
    """A figure of a run by a dotted path, `modes.greedy.tokens_per_second`; None if it has none."""
    found: Any = run
    for name in field.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def median(runs: Sequence[Run], contender: str, field: str) -> float | None:
    """Median over rounds, None if there is nothing."""
    values = [v for run in of(runs, contender).values() if (v := value(run, field)) is not None]
    return statistics.median(values) if values else None


def ratios(runs: Sequence[Run], first: str, second: str, field: str) -> list[float]:
    """first / second for every round that both have, of one invocation: a machine is another one an hour later."""
    left, right = of(runs, first), of(runs, second)
    rounds = [index for index in sorted(left.keys() & right.keys()) if together(left[index], right[index])]
    pairs = [(value(left[index], field), value(right[index], field)) for index in rounds]
    return [a / b for a, b in pairs if a is not None and b]


def together(first: Run, second: Run) -> bool:
    """Were both measured by one invocation of the bench? Its results can be merged from several."""
    return first.get("invocation") == second.get("invocation")


def comparable(runs: Sequence[Run], first: str, second: str) -> bool:
    """Did both do the same work? False if in any round that both have they say that they trained other rows or tokens,
    or took different numbers of steps: then a ratio of the two means nothing."""
    left, right = of(runs, first), of(runs, second)
    for index in left.keys() & right.keys():
        told = [(run.get("rows_digest"), run.get("losses")) for run in (left[index], right[index])]
        (digest, losses_), (other_digest, other_losses) = told
        if digest and other_digest and digest != other_digest:
            return False
        if losses_ and other_losses and len(losses_) != len(other_losses):
            return False
    return True


@dataclass(frozen=True)
class LossDifference:
    """Losses of one round side by side. `largest` and `mean` are of the absolute differences, in nats per token."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(a - b for a, b in zip(self.first, self.second, strict=True))

    @property
    def largest(self) -> float:
        """Of one step."""
        return max(map(abs, self.differences))

    @property
    def mean(self) -> float:
        """Over the steps."""
        return statistics.fmean(map(abs, self.differences))


def losses(runs: Sequence[Run], first: str, second: str) -> list[LossDifference]:
    """Losses of every round that both have; none if the two are not comparable."""
    if not comparable(runs, first, second):
        return []
    left, right = of(runs, first), of(runs, second)
    pairs = [(left[i].get("losses"), right[i].get("losses")) for i in sorted(left.keys() & right.keys())]
    return [LossDifference(tuple(a), tuple(b)) for a, b in pairs if a and b]


@dataclass(frozen=True)
class MeanDifference:
    """How far two contenders are apart on average, with a 95 % interval (normal, of the differences of single steps).

    Attributes:
        count: of steps.
    """

    mean: float
    low: float
    high: float
    count: int


def difference(runs: Sequence[Run], first: str, second: str, field: str) -> MeanDifference | None:
    """first - second of a list with a value for each step, step by step, in the first round that both have."""
    left, right = of(runs, first), of(runs, second)
    index = min(left.keys() & right.keys(), default=None)
    if index is None:
        return None
    one, other = (run.get(field) or () for run in (left[index], right[index]))
    if len(one) != len(other) or len(one) < 2:
        return None
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean, half = statistics.fmean(apart), 1.96 * statistics.stdev(apart) / len(apart) ** 0.5
    return MeanDifference(mean, mean - half, mean + half, len(apart))


def executed(run: Run, shape: Shape) -> float | None:
    """FLOPs that a run executed: its own count, else by formula; None if it says neither."""
    if run.get("flops"):
        return float(run["flops"])
    if "positions" not in run:
        return None
    work = Work(run["positions"], run["head_positions"], run["pairs"])
    if run.get("passes") == "forward":
        return flops.forward(shape, work, run.get("rank", 0))
    return flops.training(shape, work, rank=run.get("rank", 0), recompute=bool(run.get("recompute")))


def seconds(run: Run) -> float | None:
    """What the measured work of a run took: its steps, its scoring, its greedy generation."""
    fields = ("train_s", "score_s", "modes.greedy.seconds")
    return next((found for field in fields if (found := value(run, field))), None)


def tokens(run: Run) -> float | None:
    """What it did in that time: input tokens, new tokens of generation."""
    return value(run, "tokens") or value(run, "modes.greedy.new_tokens")


def precision(run: Run) -> str:
    """What a contender computed in; transformers' default is fp32 here."""
    told = str(run.get("precision", ""))
    return "fp32" if told == "default" else told


def gemm(runs: Sequence[Run], precision: str) -> float | None:
    """The machine's rate in FLOP/s, median over rounds."""
    return median(runs, "machine", f"gemm.{precision}")


def share(runs: Sequence[Run], contender: str, shape: Shape) -> float | None:
    """Executed FLOPs per second as a share of the machine's GEMM rate in the contender's precision, the rate being that
    of the same round, or the median of the same invocation where the round has none; median over rounds."""
    shares = []
    for index, run in of(runs, contender).items():
        beside = [one for one in runs if together(one, run)]
        measured = [one for one in beside if one["round"] == index]
        rate = gemm(measured, precision(run)) or gemm(beside, precision(run))
        done, took = executed(run, shape), seconds(run)
        if rate and done is not None and took:
            shares.append(done / took / rate)
    return statistics.median(shares) if shares else None


def failures(runs: Sequence[Run]) -> dict[str, str]:
    """The last line of each contender that failed in every round."""
    found = {run["contender"]: run["failed"] for run in runs if run.get("failed")}
    return {name: line for name, line in found.items() if not of(runs, name)}


def contenders(runs: Sequence[Run]) -> list[str]:
    """Names in the order in which they first ran, the machine left out."""
    return [name for name in dict.fromkeys(run["contender"] for run in runs) if name != "machine"]
