"""docs/learning.md and its charts, from the results. The same results always give the same bytes."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learning.figures import paired
from learning.tasks import RATIO, SEEDS, TASKS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/bench"))
from harness import RESULTS, charts  # noqa: E402  the bench's charts

Result = Mapping[str, Any]
FOLDER = RESULTS / "learning"
SMOOTHED = 10
"""Steps that a point of a curve is the mean of."""

OPENING = """\
# What preferences teach a small model

This page measures what SmolLM2-135M learns from preference data on a CPU. Each run trains a LoRA adapter of rank 16 for
one pass over its training rows: `rm` trains a reward model, `dpo` the language model itself. All measurements use
prompts that are in no training row.

The numbers come from the files in [results/learning](../tests/bench/results/learning). These commands write the files
and this page. They take an hour or more on two cores, and skip every task that has its file:

<!-- not run: it takes an hour -->
```sh
python tools/learn_rewards.py SHARED tests/bench/results/learning
python tools/learn_rewards.py --page
```

Accuracy is the share of held-out pairs whose chosen answer gets the higher reward. Its 95 % interval is Wilson's. Pairs
of the same prompt depend on each other: where a prompt has several pairs, the interval comes from resampling whole
prompts. The length rule is a baseline that looks only at length: it always takes the longer answer or always the
shorter one, whichever is chosen more often in the training rows. A model that does not beat this rule may have learned
nothing but length.
"""


def read(folder: Path) -> dict[str, Result]:
    """Results by task, in the order of the tasks."""
    files = {name: folder / f"{name}.json" for name in TASKS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def draw(folder: Path, docs: Path) -> None:
    """Write the page and its charts, from the results in a folder."""
    results = read(folder)
    charted = drawings(results)
    for name, text in charted.items():
        (docs / "learning" / f"{name}.svg").write_text(text, encoding="utf-8")
    (docs / "learning.md").write_text(render(results, tuple(charted)), encoding="utf-8")


def render(results: Mapping[str, Result], charted: Sequence[str]) -> str:
    """The page.

    Args:
        charted: names of the charts that are there.
    """
    parts = [OPENING, *pairs_section(results), *weights_section(results), *steps_section(results)]
    for name in charted:
        parts += [f"![{name.replace('-', ' ')}](learning/{name}.svg)", ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def pairs_section(results: Mapping[str, Result]) -> list[str]:
    """Reward models and dpo."""
    found = [one for one in results.values() if not one["part_of"] and "length_rule" in one["reached"]]
    if not found:
        return []
    lines = [
        "## Pairs", "",
        "| Rows | Method | Training pairs | Held out (prompts) | Accuracy (95 %) | Length rule | Points ahead (95 %) |",
        "|---|---|---:|---:|---|---|---|",
    ]  # fmt: skip
    for one in found:
        reached = one["reached"]
        rule = f"{reached['length_rule']}: {_share(reached, 'length_accuracy')}"
        held_out = f"{reached['pairs']} ({reached['prompts']})"
        ahead = f"{_points(reached['ahead_of_length'])} ({_span(reached, 'ahead', _points)})"
        accuracy = f"{_share(reached, 'accuracy')} ({_span(reached, 'accuracy', _percent)})"
        cells = [one["about"], one["method"]["name"], f"{one['rows']['train']:,}", held_out, accuracy, rule, ahead]
        lines.append(f"| {' | '.join(cells)} |")
    beyond = [one for one in found if one["method"]["name"] == "rm" and one["task"] != "shorter-rm"]
    chance = sum(one["reached"]["accuracy_low"] > 0.5 for one in beyond)
    if beyond:
        lines += [
            "",
            f"`rm` beats chance on {chance} of {len(beyond)} row sets with preferences other than length.",
            "",
        ]
    return [*lines, ""]


def weights_section(results: Mapping[str, Result]) -> list[str]:
    """KTO with and without weights."""
    sides = {
        kind: [results[name] for seed in range(SEEDS) if (name := f"kto-{kind}-{seed}") in results]
        for kind in ("weighted", "unweighted")
    }
    if min(len(of) for of in sides.values()) < 2 or len({len(of) for of in sides.values()}) > 1:
        return []
    lines = [
        "## KTO with few desirable answers", "",
        f"The rows (hh_harmless unpaired, short transcripts) have {RATIO} undesirable answers for each desirable one.",
        f"The weighted runs set `desirable_weight: {RATIO}`, so both kinds have the same total weight. Accuracy on",
        "held-out pairs:", "",
        "| Seed | Weighted | Unweighted |", "|---|---:|---:|",
    ]  # fmt: skip
    values = {kind: [one["reached"]["accuracy"] for one in of] for kind, of in sides.items()}
    for seed, (first, second) in enumerate(zip(values["weighted"], values["unweighted"], strict=True)):
        lines.append(f"| {seed} | {100 * first:.1f} % | {100 * second:.1f} % |")
    away = paired(values["weighted"], values["unweighted"])
    means = [100 * statistics.fmean(values[kind]) for kind in ("weighted", "unweighted")]
    lines += [
        f"| mean | {means[0]:.1f} % | {means[1]:.1f} % |", "",
        f"Weighted minus unweighted, paired by seed: {_points(away['difference'])} points, 95 % interval",
        f"{_points(away['low'])} to {_points(away['high'])} (Student's t over {away['runs']} seeds). "
        + ("The interval contains 0, so the runs show no difference." if away["low"] <= 0 <= away["high"] else ""), "",
    ]  # fmt: skip
    return [line.rstrip() for line in lines]


def steps_section(results: Mapping[str, Result]) -> list[str]:
    """The process reward model."""
    one = results.get("steps-prm")
    if one is None:
        return []
    reached = one["reached"]
    known = "better than" if reached["balanced_accuracy_low"] > 0.5 else "not shown to be better than"
    lines = [
        "## Steps",
        "",
        f"A process reward model (method `prm`) on stepwise_1k: {one['rows']['train']:,} answers train,",
        f"{one['rows_held_out']} are held out. Balanced accuracy, the mean over right and wrong steps, is",
        f"{_share(reached, 'balanced_accuracy')}, 95 % interval",
        f"{_span(reached, 'balanced_accuracy', _percent)} (from resampling whole answers), {known} guessing, which",
        f"gives 50 %. The model marks {_share(reached, 'accuracy_right')} of the right steps as right, and",
        f"{_share(reached, 'accuracy_wrong')} of the wrong steps as wrong.",
        "",
    ]
    return lines


def drawings(results: Mapping[str, Result]) -> dict[str, str]:
    """Charts by name: how the methods learned on the rows that train."""
    found = {}
    for method in ("rm", "dpo"):
        series = {
            one["task"].removesuffix(f"-{method}"): smoothed(one["curve"], 2)
            for one in results.values()
            if one["method"]["name"] == method
        }
        if series := {name: points for name, points in series.items() if len(points) > 1}:
            title = f"{method}: share of pairs with the higher reward for the chosen answer, mean of {SMOOTHED} steps"
            found[f"accuracy-{method}"] = charts.lines(title, series, across="step", up="accuracy", from_zero=False)
    if "steps-prm" in results:
        points = {"step cross-entropy": smoothed(results["steps-prm"]["curve"], 1)}
        title = f"prm: loss, mean of {SMOOTHED} steps"
        found["loss-prm"] = charts.lines(title, points, across="step", up="nats", from_zero=False)
    kinds = [kind for kind in ("weighted", "unweighted") if f"kto-{kind}-0" in results]
    if kinds:
        kto = {kind: smoothed(results[f"kto-{kind}-0"]["curve"], 1, 5) for kind in kinds}
        title = "kto: loss, seed 0, mean of 5 steps"
        found["loss-kto"] = charts.lines(title, kto, across="step", up="loss", from_zero=False)
    return found


def smoothed(curve: Sequence[Sequence[float]], column: int, most: int = SMOOTHED) -> list[tuple[float, float]]:
    """(step, mean of the last `most` values), from the first step on that has so many."""
    values = [(point[0], point[column]) for point in curve if len(point) > column]
    return [
        (float(values[i][0]), statistics.fmean(v for _, v in values[i + 1 - most : i + 1]))
        for i in range(most - 1, len(values))
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(of: Mapping[str, Any], name: str) -> str:
    return _percent(of[name]) if name in of else "-"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _span(of: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    return f"{text(of[f'{name}_low'])} to {text(of[f'{name}_high'])}"
