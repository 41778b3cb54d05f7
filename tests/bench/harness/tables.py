"""The tables of docs/benchmarks.md, one for each kind of workload, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import figures, goals
from harness.flops import Shape
from harness.goals import NOT_MEASURED


def training_table(file: Mapping[str, Any]) -> list[str]:
    """Speed, memory, first step, share, and losses against TRL."""
    runs, shape = file["runs"], Shape.of(file["config"])
    lines = [
        "| Contender | Tokens/s | Against TRL defaults | Peak memory, GiB | First step, s | Share of the GEMM rate |"
        " Rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        done = figures.of(runs, name)
        if not done:
            continue
        ratio = goals.ratio_text(figures.ratios(runs, name, goals.DEFAULTS, "tokens_per_second"))
        part = figures.share(runs, name, shape)
        precision = next(iter(done.values())).get("precision", "")
        cells = [
            name,
            number(figures.median(runs, name, "tokens_per_second"), 0),
            "1" if name == goals.DEFAULTS else ratio,
            number(figures.median(runs, name, "peak_memory_bytes"), 2, 2**30),
            number(figures.median(runs, name, "first_step_s"), 1),
            NOT_MEASURED if part is None else f"{100 * part:.0f} % of {precision}",
            str(len(done)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *losses_table(runs), *rows_text(file), *settings_text(runs)]


def losses_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses side by side: largest and mean difference."""
    pairs = (("finetooth bf16", "TRL defaults"), ("finetooth fp32", "TRL fp32"), ("TRL defaults", "TRL fp32"))
    lines = [
        "| Losses | Steps | First, last | First, last | Largest difference | Mean difference | Of the means |",
        "|---|---|---|---|---|---|---|",
    ]
    for first, second in pairs:
        found = figures.losses(runs, first, second)
        if found is not None:
            ends = [f"{x[0]:.4f}, {x[-1]:.4f}" for x in (found.first, found.second)]
            cells = [f"{first} and {second}", str(len(found.first)), *ends]
            cells += [f"{v:.1e}" for v in (found.largest, found.mean, found.mean_signed)]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def rows_text(file: Mapping[str, Any]) -> list[str]:
    """Whether everybody trained the same tokens."""
    same = file.get("comparisons", {}).get("same_rows", {})
    if not same:
        return []
    other = [name for name, equal in same.items() if not equal]
    text = "Every contender that tells trained the same tokens in the same order, checked by hash."
    return [text if not other else f"Other tokens than finetooth's were trained by: {', '.join(other)}.", ""]


def settings_text(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each contender ran with, as it says itself."""
    lines = []
    for name in figures.contenders(runs):
        run = next(iter(figures.of(runs, name).values()), None)
        if run is not None and run.get("settings"):
            lines.append(f"- {name}: {', '.join(f'`{k}={v}`' for k, v in run['settings'].items())}")
    return lines


def scoring_table(file: Mapping[str, Any]) -> list[str]:
    """Speed, working memory, and how near the answers are."""
    runs = file["runs"]
    near = file.get("comparisons", {}).get("answers", {})
    lines = [
        "| Contender | Tokens/s | Peak memory, GiB | Working memory, MiB | Off transformers in fp32: largest, mean |",
        "|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        if not figures.of(runs, name):
            continue
        difference = f"{near[name]['largest']:.1e}, {near[name]['mean']:.1e}" if name in near else ""
        cells = [
            name,
            number(figures.median(runs, name, "tokens_per_second"), 0),
            number(figures.median(runs, name, "peak_memory_bytes"), 2, 2**30),
            number(figures.median(runs, name, "working_bytes"), 0, 2**20),
            difference,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Working memory is the peak while scoring above what was held before it."]


def generation_table(file: Mapping[str, Any]) -> list[str]:
    """New tokens a second by mode, and greedy answers that part."""
    runs = file["runs"]
    lines = ["| Contender | Greedy, new tokens/s | Sampled, new tokens/s | Peak memory, GiB |", "|---|---|---|---|"]
    for name in figures.contenders(runs):
        speeds = [number(figures.median(runs, name, f"modes.{m}.tokens_per_second"), 0) for m in ("greedy", "sampled")]
        memory = number(figures.median(runs, name, "peak_memory_bytes"), 2, 2**30)
        if figures.of(runs, name):
            lines.append(f"| {' | '.join([name, *speeds, memory])} |")
    for precision, found in file.get("comparisons", {}).items():
        gaps = sorted(abs(one["gap"]) for one in found["parted"])
        text = f"{precision}: {found['rows'] - len(gaps)} of {found['rows']} greedy answers are equal to the last token"
        if gaps:
            text += (
                f"; {len(gaps)} part somewhere, where an fp32 forward puts the two tokens {gaps[0]:.1e} to "
                f"{gaps[-1]:.1e} nats apart (near-tie: up to {goals.NEAR_TIE[precision]:g})"
            )
        lines += ["", f"{text}."]
    return lines


def startup_table(file: Mapping[str, Any]) -> list[str]:
    """Seconds of every command."""
    lines = ["| Command | Median, s | Least, s | Most, s | Calls |", "|---|---|---|---|---|"]
    seconds: dict[str, list[float]] = {}
    for run in file["runs"]:
        for name, values in run.get("seconds", {}).items():
            seconds.setdefault(name, []).extend(values)
    for name, values in seconds.items():
        middle = sorted(values)[len(values) // 2]
        lines.append(f"| `{name}` | {middle:.3f} | {min(values):.3f} | {max(values):.3f} | {len(values)} |")
    return [*lines, "", "The time to the first step of a run is in the table of (a)."]


def scaling_tables(file: Mapping[str, Any]) -> list[str]:
    """The three curves."""
    lines: list[str] = []
    shape = Shape.of(file["config"])
    for curve, title in (("length", "Tokens in a window"), ("batch", "Rows in a step")):
        points = goals.curve(file, curve)
        if not points:
            continue
        lines += [f"| {title} | Tokens/s | Executed FLOPs, GFLOP/s | Peak memory, GiB |", "|---|---|---|---|"]
        for run in points:
            done = figures.executed(run, shape)
            rate = number(None if done is None else done / run["train_s"], 0, 1e9)
            memory = number(run["peak_memory_bytes"], 2, 2**30)
            lines.append(f"| {run['x']:,} | {run['tokens_per_second']:,.0f} | {rate} | {memory} |")
        lines.append("")
    rows = [*goals.curve(file, "rows"), *goals.curve(file, "rows", ours=False)]
    if rows:
        lines += [
            "| Rows prepared | Seconds | Rows/s | From the cache, s | Peak memory, GiB |",
            "|---|---|---|---|---|",
        ]
    for run in rows:
        cells = [run["contender"], f"{run['seconds']:.1f}", f"{run['rows_per_second']:,.0f}", f"{run['warm_s']:.1f}"]
        lines.append(f"| {' | '.join([*cells, number(run['peak_memory_bytes'], 2, 2**30)])} |")
    return lines


def overhead_table(file: Mapping[str, Any]) -> list[str]:
    """What telling costs."""
    lines = ["| Run | Telling, ms a step | A step, s | Share |", "|---|---|---|---|"]
    for name in figures.contenders(file["runs"]):
        done = list(figures.of(file["runs"], name).values())
        part = goals.overhead(file, name)
        if part is None:
            continue
        told = [value for run in done for value in run["tell_s"]]
        steps = [value for run in done for value in run["step_s"]]
        cells = [name, f"{1000 * sum(told) / len(told):.2f}", f"{sum(steps) / len(steps):.2f}", f"{100 * part:.3f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value: float | None, digits: int, unit: float = 1.0) -> str:
    """A figure for a table."""
    return NOT_MEASURED if value is None else f"{value / unit:,.{digits}f}"
