"""docs/cookbook.md and its curve, from how the recipes ended. The same results always give the same bytes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import charts

from judges.recipes import ALL, ARITHMETIC, STAND_IN, SUMS, Recipe

FEW = 5
"""Steps at each end whose mean rewards are compared."""
GAIN = 0.1
"""By how much the last ones must exceed the first ones."""
SHOWN = 4 * 8 * 8
"""Sums in the steps, conversations and turns of `SUMS`."""
SMOOTHED = 5

OPENING = f"""\
# Recipes of tinker-cookbook

These recipes of the public cookbook run against `ft serve tinker`, unmodified, with the public client. `make cookbook`
makes an environment with both, runs them, and draws this page from what came of it; `.ci/run` runs them too.

<!-- not run: it takes minutes, and makes an environment of its own -->
```sh
make cookbook
```

`{STAND_IN}` is a name that recipes know. Here a random model of two layers stands behind it, with the
tokenizer of SmolLM2, and real rows stand in for the datasets: such a run shows that the wire is whole, not that
something is learned. `smollm2-135m` is SmolLM2-135M-Instruct. Each command had a `log_path` besides, and
[Run a script written for Tinker](guides/serve.md#run-a-script-written-for-tinker) says which variables name the server.
"""


class Book:
    """How recipes ended.

    Args:
        versions: of what judges, by name.
        file: the results. With the same versions those of an earlier run stand for recipes that this one leaves out.
    """

    def __init__(self, versions: Mapping[str, str], file: Path) -> None:
        self._versions, self._file = dict(versions), file
        self._ended: dict[str, dict[str, Any]] = {}
        self._curve: dict[str, list[float]] = {}
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if found and found["versions"] == self._versions:
            commands = {recipe.name: recipe.command for recipe in ALL}
            self._ended = {one["name"]: one for one in found["recipes"] if one["command"] == commands.get(one["name"])}
            self._curve = found["arithmetic"]

    def note(self, recipe: Recipe, lines: Sequence[Mapping[str, Any]], ended: str = "to its end") -> None:
        """A recipe that ran to its end, and the lines of its metrics."""
        values = [line[recipe.metric] for line in lines if recipe.metric in line]
        self._ended[recipe.name] = {
            "name": recipe.name, "command": recipe.command, "ended": ended, "steps": len(values),
            "metric": recipe.metric, "last": values[-1],
        }  # fmt: skip
        if recipe.name == ARITHMETIC.name:
            self._curve = {name: [line[f"env/all/{name}"] for line in lines] for name in ("correct", "format")}
            self._curve["reward"] = values

    @property
    def whole(self) -> bool:
        """Whether all recipes are in it."""
        return all(recipe.name in self._ended for recipe in ALL)

    def write(self, docs: Path) -> None:
        """The results, the curve and the page."""
        found = {
            "versions": self._versions,
            "recipes": [self._ended[recipe.name] for recipe in ALL],
            "arithmetic": self._curve,
        }
        (docs / "cookbook").mkdir(exist_ok=True)
        self._file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (docs / "cookbook/arithmetic.svg").write_text(curve(found["arithmetic"]), encoding="utf-8")
        (docs / "cookbook.md").write_text(render(found), encoding="utf-8")


def ends(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean of the first and of the last `FEW` rewards."""
    return statistics.fmean(rewards[:FEW]), statistics.fmean(rewards[-FEW:])


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [OPENING, f"With {versions}.", "", "| recipe | ended | steps | last metric |", "|---|---|---:|---|"]
    for one in found["recipes"]:
        lines.append(f"| {one['name']} | {one['ended']} | {one['steps']} | `{one['metric']}` {one['last']:.4g} |")
    lines += ["", "Their commands:", "", "<!-- not run: they need a running server and the client's packages -->"]
    lines += ["```sh", *[part for one in found["recipes"] for part in shell(one["command"])], "```", ""]
    rewards = found["arithmetic"]["reward"]
    first, last = ends(rewards)
    lines += [
        "## Arithmetic", "",
        "SmolLM2-135M-Instruct learns by reinforcement to answer sums of two numbers up to 100. The recipe's",
        "reward is 1 for the right number, less 0.1 for an answer that does not end as the renderer wants. Of itself",
        "the model is right in a few of a hundred cases, too seldom to learn from rewards:",
        f"`{SUMS.name}` shows it {SHOWN} answered sums first, and `CHECKPOINT` is what that saved.", "",
        "| | reward | right | ends as it should |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, part in ((f"first {FEW} steps", slice(None, FEW)), (f"last {FEW} of {len(rewards)}", slice(-FEW, None))):
        means = {key: statistics.fmean(values[part]) for key, values in found["arithmetic"].items()}
        lines.append(f"| {name} | {means['reward']:.3f} | {means['correct']:.1%} | {means['format']:.1%} |")
    lines += [
        "", f"The mean reward rose by {last - first:.3f}; the test asks for {GAIN}.", "",
        "![reward by step](cookbook/arithmetic.svg)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def shell(command: str, width: int = 110) -> list[str]:
    """A command as lines that a shell takes as one."""
    lines = [""]
    for word in command.split():
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def curve(found: Mapping[str, Sequence[float]]) -> str:
    """The reward, and how it grows, by step."""
    rewards = found["reward"]
    mean = [
        (float(step), statistics.fmean(rewards[step + 1 - SMOOTHED : step + 1]))
        for step in range(SMOOTHED - 1, len(rewards))
    ]
    series = {f"mean of {SMOOTHED} steps": mean, "step": [(float(n), value) for n, value in enumerate(rewards)]}
    return charts.lines("arithmetic: mean reward", series, across="step", up="reward", from_zero=False)
