"""One task of learning by reward, with one seed: its runs, and what they reach on held-out rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_methods.intervals import bootstrap, wilson
from learning.online_tasks import OnlineTask

FIRST, LAST = "before", "after"
TAIL = 10
"""Steps at each end of a curve whose mean is reported."""


def learn(task: OnlineTask, seed: int, data: Path, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a task from the beginning, and say what was found.

    Args:
        folder: gets the runs; what lies there is taken away first.
        overrides: settings for every run, `train.max_steps=4`.
    """
    import finetooth

    if folder.exists():
        shutil.rmtree(folder)
    found: dict[str, Any] = {"task": task.name, "seed": seed, "overrides": list(overrides), "runs": {}}
    recipes = task.runs(data, folder, seed)
    found["fingerprint"] = fingerprint(recipes, folder, overrides)
    for name, recipe in recipes.items():
        began, cpu = time.monotonic(), _cpu()
        given = {**recipe, "trackers": ["jsonl"], "output": str(folder / name)}
        ended = finetooth.session(given, *overrides).run()
        if ended.status not in ("done", "stopped"):
            raise RuntimeError(f"{task.name}: run {name} ended as {ended.status}: {ended.reason}")
        if name in task.measured:
            lines = read(folder / name / "metrics.jsonl")
            took = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(_cpu() - cpu, 1)}
            found["runs"][name] = {**took, **measured(task, lines)}
    return found


def fingerprint(recipes: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> str:
    """Of everything that a result depends on but the code and the data; the same wherever the runs lie."""
    told = json.dumps([dict(recipes), list(overrides)], sort_keys=True).replace(str(folder), "")
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _cpu() -> float:
    """Seconds of all cores that this process has had."""
    times = os.times()
    return times.user + times.system


def read(file: Path) -> list[dict[str, Any]]:
    """What the tracker `jsonl` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def measured(task: OnlineTask, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curve of a run, and its first and last evaluation with their intervals (Wilson's, 95 %).

    Returns:
        `steps`, `curves` (lists of numbers by metric, one for each step; `curve` of the task, and what tells whether
        there was something to learn), and where the task has a `share`: `before` and `after`, each with `share`, `low`,
        `high` and `rows`. Where it is `scored`: `rounds`, for each evaluation the `mean` of the rows' scores with its
        interval, and `gain`, that of the last less the first, row by row.
    """
    steps = [line for line in lines if line.get("event") == "step"]
    names = dict.fromkeys((task.curve, "reward", "entropy", "frac_reward_zero_std", "completions/mean_length"))
    curves = {
        name: [round(step["metrics"][name], 4) for step in steps]
        for name in names
        if steps and all(name in step.get("metrics", {}) for step in steps)
    }
    found: dict[str, Any] = {"steps": len(steps), "curves": curves}
    judged = [line for line in lines if line.get("event") == "evaluation" and task.share in line.get("metrics", {})]
    if task.share:
        if len(judged) < 2:
            raise ValueError(f"{task.name}: the run was judged {len(judged)} times by {task.share!r}, not twice")
        for name, line in ((FIRST, judged[0]), (LAST, judged[-1])):
            share, rows = line["metrics"][task.share], line["rows"]
            low, high = wilson(share, rows)
            found[name] = {"share": share, "low": low, "high": high, "rows": rows, "step": line["step"]}
    if task.scored:
        found |= scored([line for line in lines if line.get("event") == "evaluation"])
    return found


def scored(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of scores, with intervals from resampling the rows; see `measured`."""
    rounds, values = [], [[sample["score"] for sample in line["samples"]] for line in judged]
    for line, scores in zip(judged, values, strict=True):
        rounds.append({"step": line["step"], "unfinished": line["metrics"]["unfinished"], **mean_of(scores)})
    return {"rounds": rounds, "gain": mean_of([b - a for a, b in zip(values[0], values[-1], strict=True)])}


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its 95 % interval (percentile bootstrap)."""
    low, high = bootstrap(values, statistics.fmean, np.random.default_rng(0))
    return {
        "mean": round(statistics.fmean(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "rows": len(values),
    }


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the first and of the last steps of a curve, `TAIL` of them or a third."""
    count = max(1, min(TAIL, len(values) // 3))
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:])
