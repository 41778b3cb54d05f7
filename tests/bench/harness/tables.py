"""The tables of docs/benchmarks.md, one for each kind of workload, as lines of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness import figures, goals
from harness.flops import Shape
from harness.goals import NOT_MEASURED


def training_table(file: Mapping[str, Any], beside: str = goals.DEFAULTS) -> list[str]:
    """Speed, memory, first step, share, and losses against TRL.

    Args:
        beside: the contender that the others are compared with.
    """
    runs = file["runs"]
    lines = [
        f"| Contender | Tokens/s | Against {beside} | Peak memory, GB | First step, s | Share of the GEMM rate |"
        " Rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        done = figures.of(runs, name)
        if not done:
            continue
        ratio = goals.ratio_text(figures.ratios(runs, name, beside, "tokens_per_second"))
        if not figures.comparable(runs, name, beside):
            ratio = "not comparable"
        cells = [
            name,
            number(figures.median(runs, name, "tokens_per_second"), 0),
            "1" if name == beside else ratio,
            number(figures.median(runs, name, "peak_memory_bytes"), 2, 1e9),
            number(figures.median(runs, name, "first_step_s"), 1),
            share_text(file, name),
            str(len(done)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    told = [*losses_table(runs), *rows_text(file), *first_step_table(runs), *company_text(runs), *settings_text(runs)]
    return [*lines, "", *told]


def rollouts_table(file: Mapping[str, Any], beside: str = goals.DEFAULTS) -> list[str]:
    """Samples a second, and what was drawn and computed for it.

    Args:
        beside: the contender that the others are compared with.
    """
    runs = file["runs"]
    lines = [
        f"| Contender | Samples/s | Against {beside} | Samples a second of the processor | Against {beside} |"
        " Peak memory, GB | First step, s | Tokens of an answer | Rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        if not (done := figures.of(runs, name)):
            continue
        speeds = []
        for field in ("samples_per_second", "samples_per_cpu_second"):
            ratio = goals.ratio_text(figures.ratios(runs, name, beside, field))
            speeds += [number(figures.median(runs, name, field), 2), "1" if name == beside else ratio]
        cells = [
            name,
            *speeds,
            number(figures.median(runs, name, "peak_memory_bytes"), 2, 1e9),
            number(figures.median(runs, name, "first_step_s"), 1),
            number(figures.median(runs, name, "mean_length"), 1),
            str(len(done)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *positions_table(runs), *company_text(runs), *settings_text(runs)]


def positions_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went through the model, counted: whether the prompt of a group is computed once, or for each answer."""
    lines = [
        "| Contender | Tokens of the questions | Positions to read them | for each token | Positions trained |",
        "|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        run = next((one for one in figures.of(runs, name).values() if "read_positions" in one), None)
        if run is not None:
            each = f"{run['read_positions'] / run['prompt_tokens']:.2f}"
            told = (f"{run[field]:,}" for field in ("prompt_tokens", "read_positions", "trained_positions"))
            asked, read, trained = told
            lines.append(f"| {name} | {asked} | {read} | {each} | {trained} |")
    return [*lines, ""] if len(lines) > 2 else []


def company_text(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """With how many threads everybody computed, and how much of the machine others had meanwhile."""
    threads = sorted({int(run["threads"]) for run in runs if run.get("threads")})
    others = [run["others_cores"] for run in runs if "others_cores" in run]
    if not threads or not others:
        return []
    counts = " or ".join(str(one) for one in threads)
    middle = statistics.median(others)
    return [
        f"Computed with {counts} {'thread' if threads == [1] else 'threads'}; others had {middle:.1f} cores of the "
        f"machine meanwhile ({min(others):.1f} to {max(others):.1f}).",
        "",
    ]


def losses_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses side by side, of the worst round: the largest difference of a step, and the mean of the absolute
    differences."""
    pairs = (
        ("finetooth bf16", "TRL defaults"),
        ("finetooth bf16", "TRL tuned"),
        ("finetooth fp32", "TRL fp32"),
        ("finetooth bf16", "TRL fp32"),
        ("TRL defaults", "TRL fp32"),
    )
    lines = [
        "| Losses | Steps | First, last | First, last | Largest difference of a step | Mean of absolute differences |",
        "|---|---|---|---|---|---|",
    ]
    for first, second in pairs:
        if not figures.comparable(runs, first, second):
            lines.append(f"| {first} and {second} | | | | not comparable | not comparable |")
        rounds = figures.losses(runs, first, second)
        if rounds:
            worst = max(rounds, key=lambda one: one.mean)
            ends = [f"{x[0]:.4f}, {x[-1]:.4f}" for x in (worst.first, worst.second)]
            cells = [f"{first} and {second}", str(len(worst.first)), *ends]
            cells += [f"{max(one.largest for one in rounds):.1e}", f"{worst.mean:.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def rows_text(file: Mapping[str, Any]) -> list[str]:
    """Whether everybody trained the same tokens."""
    same = file.get("comparisons", {}).get("same_rows", {})
    if not same:
        return []
    other = [name for name, equal in same.items() if not equal]
    silent = [name for name in figures.contenders(file["runs"]) if name not in same and figures.of(file["runs"], name)]
    text = "Every contender that tells trained the same tokens in the same order, checked by hash."
    if other:
        text = f"Other tokens than finetooth's were trained by: {', '.join(other)}; no ratio is judged by them."
    return [f"{text} Not told by: {', '.join(silent)}." if silent else text, ""]


def first_step_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What finetooth's time to the first step is made of: medians over rounds."""
    parts: dict[str, list[float]] = {}
    for run in (run for run in figures.of(runs, goals.MINE).values() if run.get("ends_s")):
        before = 0.0
        for name, end in {**run["ends_s"], "first step": run["first_step_s"]}.items():
            parts.setdefault(name, []).append(end - before)
            before = end
    if not parts:
        return []
    told = ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in parts.items())
    return [f"finetooth's time to the first step: {told}.", ""]


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
        "| Contender | Tokens/s | Share of the GEMM rate | Peak memory, GB | Working memory, MB |"
        " Off transformers in fp32: largest, mean |",
        "|---|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        if not figures.of(runs, name):
            continue
        difference = f"{near[name]['largest']:.1e}, {near[name]['mean']:.1e}" if name in near else ""
        cells = [
            name,
            number(figures.median(runs, name, "tokens_per_second"), 0),
            # with another vocabulary the formulas would not hold
            NOT_MEASURED if "vocabulary" in name else share_text(file, name),
            number(figures.median(runs, name, "peak_memory_bytes"), 2, 1e9),
            number(figures.median(runs, name, "working_bytes"), 0, 1e6),
            difference,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Working memory is the peak while scoring above what was held before it."]


def generation_table(file: Mapping[str, Any]) -> list[str]:
    """New tokens a second by mode, and greedy answers that part."""
    runs = file["runs"]
    lines = [
        "| Contender | Greedy, new tokens/s | Sampled, new tokens/s | Share of the GEMM rate, greedy |"
        " Peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for name in figures.contenders(runs):
        speeds = [number(figures.median(runs, name, f"modes.{m}.tokens_per_second"), 0) for m in ("greedy", "sampled")]
        memory = number(figures.median(runs, name, "peak_memory_bytes"), 2, 1e9)
        if figures.of(runs, name):
            lines.append(f"| {' | '.join([name, *speeds, share_text(file, name), memory])} |")
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
    lines += ["", "The time to the first step of a run is in the table of (a).", ""]
    return [*lines, *imports_table(file["runs"]), *native_text(file["runs"])]


def imports_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The costliest imports of the profiled commands, those that a costlier one imports below it."""
    lines = []
    for name, found in next((run["imports"] for run in runs if run.get("imports")), {}).items():
        head = f"Imports of `{name}`: {found['modules']:,} modules in {found['total_ms']:,.0f} ms, timing included."
        lines += [head, "", "| Module | With what it imports, ms | Alone, ms |", "|---|---|---|"]
        lines += [f"| `{one['name']}` | {one['cumulative_ms']:,.1f} | {one['own_ms']:,.1f} |" for one in found["top"]]
        lines.append("")
    return lines


def native_text(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the native kernels cost at a start."""
    found = [run["native"] for run in runs if run.get("native")]
    told = [one for one in found if "compile_s" in one]
    if not told:
        return [f"Native kernels: {one['reason']}." for one in found[:1]]
    compiling, loading = (statistics.median(one[part] for one in told) for part in ("compile_s", "load_s"))
    return [
        f"The native kernels are compiled once a machine, which takes {compiling:.1f} s; all other figures are from a "
        f"machine where that was done. Loading them takes {1000 * loading:.0f} ms a run."
    ]


def scaling_tables(file: Mapping[str, Any]) -> list[str]:
    """The three curves."""
    lines: list[str] = []
    shape = Shape.of(file["config"])
    for curve, title in (("length", "Tokens in a window"), ("batch", "Rows in a step")):
        points = goals.curve(file, curve)
        if not points:
            continue
        lines += [f"| {title} | Tokens/s | Executed FLOPs, GFLOP/s | Peak memory, GB |", "|---|---|---|---|"]
        for run in points:
            done = figures.executed(run, shape)
            rate = number(None if done is None else done / run["train_s"], 0, 1e9)
            memory = number(run["peak_memory_bytes"], 2, 1e9)
            lines.append(f"| {run['x']:,} | {run['tokens_per_second']:,.0f} | {rate} | {memory} |")
        lines.append("")
    for fit, what in ((goals.steps_fit(file), "steps"), (goals.rows_fit(file), "preparing rows")):
        if fit is not None:
            costs = ", ".join(f"{cost:.3g} s a {name}" for name, cost in fit.costs.items())
            residuals = ", ".join(f"{100 * one:+.0f} %" for one in fit.residuals)
            lines += [f"Fit of {what}: {costs}. Residuals, point by point: {residuals}.", ""]
    rows = [run for peer in ("", *goals.ROWS_PEERS) for run in goals.curve(file, "rows", peer=peer)]
    if not rows:
        return lines
    lines += [
        "| Rows prepared | Seconds | Rows/s | Processor time, s | From the cache, s | of that the data, s "
        "| Peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in rows:
        cells = [run["contender"], f"{run['seconds']:.1f}", f"{run['rows_per_second']:,.0f}"]
        cells += [number(run.get("cpu_s"), 1), f"{run['warm_s']:.1f}"]
        cells += [number(run.get("warm_data_s"), 2), number(run["peak_memory_bytes"], 2, 1e9)]
        lines.append(f"| {' | '.join(cells)} |")
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


def share_text(file: Mapping[str, Any], contender: str) -> str:
    """Executed FLOPs as a share of the GEMM rate in the contender's precision."""
    part = figures.share(file["runs"], contender, Shape.of(file["config"]))
    if part is None:
        return NOT_MEASURED
    return f"{100 * part:.0f} % of {figures.precision(next(iter(figures.of(file['runs'], contender).values())))}"


def number(value: float | None, digits: int, unit: float = 1.0) -> str:
    """A figure for a table."""
    return NOT_MEASURED if value is None else f"{value / unit:,.{digits}f}"
