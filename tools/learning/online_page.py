"""docs/benchmarks/rl.md and its charts, from the results. The same results always give the same bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learning.online_running import ends
from learning.online_tasks import ROOT, TASKS, OnlineTask

sys.path.append(str(ROOT / "tests/bench"))
from harness import RESULTS, charts
from harness.page import wrapped

Result = Mapping[str, Any]
FOLDER = RESULTS / "rl"
SMOOTHED = 5
"""Steps that a point of a curve is the mean of."""

OPENING = """\
# What rewards teach a small model

Learning by reward with SmolLM2-135M on a CPU: a LoRA adapter of rank 16. Held-out rows are never trained; a share of
them has Wilson's 95 % interval, which is about the rows, not about seeds: each seed has a line of its own. The model
answers held-out rows greedily, and in training it is sampled, so that the reward of a step is below the share that is
right. It is drawn from the files in `tests/bench/results/rl`, which this writes (a task that has its file is not run
again):

<!-- not run: it takes hours -->
```sh
python tools/learn_online.py SHARED tests/bench/results/rl --seeds 3
python tools/learn_online.py --page
```

A mean of scores has its interval from resampling the rows. Seconds are of the machine that it ran on, with other work
beside it; seconds of CPU are of all cores together.
Written by hand beside it: [what was tried](notes-rewards.md).
"""


def read(folder: Path) -> dict[str, list[Result]]:
    """Results by task, in the order of the tasks and of the seeds."""
    found = {}
    for name in TASKS:
        files = sorted(folder.glob(f"{name}-[0-9].json"))
        if files:
            found[name] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return found


def draw(docs: Path) -> None:
    """Write the page and its charts."""
    results = read(FOLDER)
    for name, text in drawings(results).items():
        (docs / f"benchmarks/rl/{name}.svg").write_text(text, encoding="utf-8")
    (docs / "benchmarks/rl.md").write_text(render(results), encoding="utf-8")


def render(results: Mapping[str, Sequence[Result]]) -> str:
    """The page."""
    parts = [OPENING]
    for name, task in TASKS.items():
        parts += section(task, results.get(name, ()))
    return wrapped("\n".join(parts)).rstrip("\n") + "\n"


def section(task: OnlineTask, results: Sequence[Result]) -> list[str]:
    """One task: a line for each run and seed, and what was to be reached."""
    lines = [f"## {task.name.capitalize()}", "", task.about, ""]
    if not results:
        return [*lines, "Not measured.", ""]
    lines += [
        "| Run | Seed | Steps | Held out, before | Held out, after | Curve, first and last steps | Seconds (of CPU) |",
        "|---|---:|---:|---|---|---|---:|",
    ]
    for name in task.measured:
        for result in results:
            run = result["runs"][name]
            cells = [name, result["seed"], run["steps"], share(run, "before"), share(run, "after"), curve(task, run)]
            lines.append(f"| {' | '.join(map(str, cells))} | {run['seconds']:,.0f} ({run['cpu_seconds']:,.0f}) |")
    lines += ["", *rounds(task, results), *verdict(task, results)]
    return [*lines, *([f"![{task.name}](rl/{task.name}.svg)", ""] if charted(task, results) else [])]


def share(run: Result, when: str) -> str:
    """A held-out share with its interval."""
    if when not in run:
        return ""
    one = run[when]
    return f"{100 * one['share']:.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f}; {one['rows']} rows)"


def curve(task: OnlineTask, run: Result) -> str:
    """Its two ends."""
    values = run["curves"].get(task.curve, ())
    return "{:.3f}, {:.3f}".format(*ends(values)) if values else ""


def rounds(task: OnlineTask, results: Sequence[Result]) -> list[str]:
    """What held-out scores came to, round by round."""
    if not task.scored:
        return []
    runs = [(result["seed"], result["runs"][task.measured[-1]]) for result in results]
    numbers = range(max(len(run["rounds"]) for _, run in runs))
    lines = [
        f"| Seed | {' | '.join(f'Round {i}' for i in numbers)} | Last less first | Cut off, first and last |",
        f"|---:|{'---|' * len(numbers)}---|---|",
    ]
    for seed, run in runs:
        cells = [between(one) for one in run["rounds"]]
        cells += [""] * (len(numbers) - len(cells))
        cut = [f"{100 * run['rounds'][i]['unfinished']:.0f} %" for i in (0, -1)]
        lines.append(f"| {seed} | {' | '.join(cells)} | {between(run['gain'], '+')} | {', '.join(cut)} |")
    return [*lines, ""]


def between(one: Mapping[str, Any], sign: str = "") -> str:
    """A mean with its interval."""
    mean, low, high = (format(one[name], f"{sign}.2f") for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high}; {one['rows']} rows)"


def verdict(task: OnlineTask, results: Sequence[Result]) -> list[str]:
    """Whether the goal is met, of every seed."""
    if task.goal is None:
        return []
    last = [result["runs"][task.measured[-1]]["after"]["share"] for result in results]
    met = sum(value >= task.goal for value in last)
    return [f"The goal, {100 * task.goal:.0f} % of the held-out rows, is met with {met} of {len(last)} seeds.", ""]


def charted(task: OnlineTask, results: Sequence[Result]) -> dict[str, list[tuple[float, float]]]:
    """Points of the curves by run and seed, smoothed."""
    found = {}
    for result in results:
        for name in task.measured:
            values = result["runs"][name]["curves"].get(task.curve, ())
            if len(values) > SMOOTHED:
                means = [sum(values[i : i + SMOOTHED]) / SMOOTHED for i in range(len(values) - SMOOTHED + 1)]
                points = [(float(i + SMOOTHED), mean) for i, mean in enumerate(means)]
                found[f"{name}, seed {result['seed']}"] = points
    return found


def drawings(results: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Charts by name."""
    found = {}
    for name, of in results.items():
        if series := charted(TASKS[name], of):
            title = f"{name}: {TASKS[name].curve} (mean of {SMOOTHED} steps)"
            found[name] = charts.lines(title, series, across="step", up=TASKS[name].curve)
    return found
