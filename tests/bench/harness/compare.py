"""Did contenders compute the same? Compared once, right after they ran; only the differences are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import figures
from harness.workload import Workload

Judge = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def comparisons(workload: Workload, runs: Sequence[Mapping[str, Any]], judge: Judge) -> dict[str, Any]:
    """What can be compared in this workload.

    Args:
        judge: looks at two lists of greedy answers.
    """
    if workload.name == "scoring":
        return {"answers": scores(runs)}
    if workload.name == "generation":
        return greedy(runs, judge)
    if any("rows_digest" in run for run in runs):
        return {"same_rows": same_rows(runs)}
    return {}


def same_rows(runs: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """For every contender that tells: did it train the rows, and of them the tokens, that finetooth trained, in every
    round?"""
    told: dict[str, set[str]] = {}
    for run in runs:
        if run.get("rows_digest"):
            told.setdefault(run["contender"], set()).add(run["rows_digest"])
    mine = next((digests for name, digests in told.items() if name.startswith("finetooth")), None)
    return {} if mine is None else {name: digests == mine and len(mine) == 1 for name, digests in told.items()}


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Largest and mean difference of the log-probabilities to those of transformers in fp32, by contender."""
    reference = figures.of(runs, "transformers default (fp32)").get(0)
    if reference is None:
        return {}
    found = {}
    for name in figures.contenders(runs):
        run = figures.of(runs, name).get(0)
        if run is None or run is reference or "vocabulary" in name:
            continue
        pairs = zip(run["answers"], reference["answers"], strict=True)
        differences = [abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)]
        found[name] = {"largest": max(differences), "mean": sum(differences) / len(differences)}
    return found


def greedy(runs: Sequence[Mapping[str, Any]], judge: Judge) -> dict[str, Any]:
    """By precision: how many rows, and for those that part, where and by how much the two tokens differ."""
    found = {}
    for precision in ("bf16", "fp32"):
        pair = [figures.of(runs, f"{who} {precision}").get(0) for who in ("finetooth", "transformers")]
        first, second = pair
        if first is None or second is None:
            continue
        parting = judge({"first": first["greedy"], "second": second["greedy"]})
        if parting is not None:
            found[precision] = parting
    return found
