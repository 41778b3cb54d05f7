"""docs/benchmarks.md and its charts, from the result files, and docs/benchmarks-NAME.md from those in results-NAME.

The same files always give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from harness import RESULTS, charts, figures, floorpage, goals, saving, service, tables
from harness.goals import NOT_MEASURED
from harness.results import Results
from harness.rollout_workloads import ONE_AFTER_THE_OTHER
from harness.workloads import WORKLOADS

PROSE = 110
TRAINING = ("lora", "full", "pretrain")
KERNELS = ("triton", "chunked", "torch, whole logits", "cut-cross-entropy", "liger-kernel")
"""As tests/bench/kernels.py names them; the first two are finetooth's."""

WHY = {
    "floor": f"#{floorpage.ANCHOR}",
    "first step": "#a-lora-supervised",
    "imports": "#f-start-up",
    "rounding": "decisions/0022-rounding.md",
}
"""Where the page says why a goal is not met."""

OPENING = """\
# Benchmarks

finetooth against what one would pick instead. Everything here is drawn from the files in
[FOLDER](../tests/bench/FOLDER) by `tests/bench/run.py`; run it again with

<!-- not run: it takes half an hour and other environments -->
```sh
make bench-peers   # finetooth alone, TRL, transformers and LLaMA-Factory, each in an environment of its own
make bench-quick   # the speed of (a) to (g), at most half an hour on two cores
make bench         # every size, three rounds
```

Each contender is a process of its own, and they take turns (A B A B), so that a machine that gets slower slows
everybody. Figures are medians over rounds; a ratio is taken between the two runs of one round, then the median, with
the range behind it. Tokens are input tokens that are not padding; the time is from the beginning of the first step to
the end of the last, so warm-up counts. Peak memory is the largest sum of resident memory over a process and its
children. Time to the first step is from the start of the process to the end of the first optimizer step; since
22 November 2026 what a contender loads is read before its turn, so that nobody starts from a cold disk. A share of
the GEMM rate counts only FLOPs that were executed, by finetooth's own count or by formula
([flops.py](../tests/bench/harness/flops.py)), against the best matrix product that the same machine did in the same
run.
"""

NOTES = """\
Written by hand beside the results, with what was tried and did not help:
[matrix-units](benchmarks/notes-matrix-units.md), [captured-steps](benchmarks/notes-captured-steps.md).
"""


def named(folder: str) -> str:
    """What the page and the folder of its charts are called, for the name of a folder of results."""
    return folder.replace(RESULTS.name, "benchmarks", 1)


def render(results: Results, folder: str = RESULTS.name, others: Sequence[str] = ()) -> dict[str, str]:
    """The page and its charts, by path below docs/.

    Args:
        folder: name of the folder of results. What another machine did not measure is left out of its page.
        others: names of the folders with the results of other machines.
    """
    loaded, results = results.get(service.NAME), {k: v for k, v in results.items() if k != service.NAME}
    drawn = drawings(results)
    alone = folder != RESULTS.name
    name = named(folder)
    parts = [OPENING.replace("FOLDER", folder), elsewhere(others), NOTES, machine_section(results)]
    parts.append(goals_section(results, measured_only=alone))
    for workload in WORKLOADS:
        file = results.get(workload.name)
        if workload.name == "profile" or (file is None and (alone or workload.name == "tuning")):
            continue
        parts.append(workload_section(workload.name, workload.title, workload.about, file, drawn, name))
    parts += [service.section(loaded), floorpage.section(results)]
    if "kernels" in results or not alone:
        parts.append(kernels_section(results))
    files = {f"{name}/{chart}.svg": text for chart, text in drawn.items()}
    return {f"{name}.md": wrapped("\n".join(part for part in parts if part)), **files}


def wrapped(text: str) -> str:
    """Paragraphs filled to `PROSE` characters; tables, pictures, headings and code as they are."""
    lines: list[str] = []
    paragraph: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        plain = not inside and line != "" and not line.startswith(("|", "!", "#", "<", "```"))
        if not plain or line.startswith("- "):
            lines += fill(paragraph)
            paragraph = []
        inside ^= line.startswith("```")
        if plain:
            paragraph.append(line)
        else:
            lines.append(line)
    return "\n".join(lines)


def fill(paragraph: Sequence[str]) -> list[str]:
    """One paragraph or list item as lines."""
    indent = "  " if paragraph and paragraph[0].startswith("- ") else ""
    return textwrap.wrap(
        " ".join(line.strip() for line in paragraph),
        PROSE,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- charts -----------------------------------------------------------------------------------------------------------


def drawings(results: Results) -> dict[str, str]:
    """Charts by name; one that has nothing to show is left out."""
    found = {}
    for name, title in (("lora", "(a) LoRA"), ("full", "(b) full fine-tune"), ("pretrain", "(c) pre-training")):
        runs = results.get(name, {}).get("runs", [])
        speeds = [(c, v) for c in figures.contenders(runs) if (v := figures.median(runs, c, "tokens_per_second"))]
        if speeds:
            found[f"{name}-speed"] = charts.bars(f"{title}: tokens a second", speeds, "tok/s")
    found |= loss_chart(results.get("lora"))
    for name, title, across, logarithmic in (
        ("length", "Speed against length", "tokens in a window", True),
        ("batch", "Speed against batch size", "rows in a step", True),
    ):
        points = [(float(run["x"]), run["tokens_per_second"]) for run in goals.curve(results.get("scaling"), name)]
        if len(points) > 1:
            found[f"scaling-{name}"] = charts.lines(
                title, {"finetooth bf16": points}, across=across, up="tokens a second", logarithmic=logarithmic
            )
    return found


def loss_chart(file: Mapping[str, Any] | None) -> dict[str, str]:
    """Losses of all contenders of (a), step by step."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name in figures.contenders((file or {}).get("runs", [])):
        run = figures.of((file or {})["runs"], name).get(0)
        if run is not None and run.get("losses"):
            series[name] = [(float(i), loss) for i, loss in enumerate(run["losses"], 1)]
    if not series:
        return {}
    title = "(a) Loss of every step, side by side"
    return {"lora-losses": charts.lines(title, series, across="step", up="nats a token", from_zero=False)}


# --- sections ---------------------------------------------------------------------------------------------------------


def elsewhere(others: Sequence[str]) -> str:
    """Where the figures of other machines stand."""
    if not others:
        return ""
    return "Other machines: " + ", ".join(f"[{name}]({name}.md)" for name in map(named, others)) + ".\n"


def machine_section(results: Results) -> str:
    """What it was measured on, and with what."""
    files = {name: file for name, file in results.items() if "machine" in file}
    if not files:
        return "Nothing has been measured yet.\n"
    lines = [
        "## What it was measured on",
        "",
        "Load is the largest number of waiting processes just before a contender started. On a quiet machine it is "
        "what the contender before left behind, at most the number of cores.",
        "",
        "| Workload | Form | Date | Load | Machine |",
        "|---|---|---|---|---|",
    ]
    for name, file in files.items():
        runs, machine = file.get("runs", []), file["machine"]
        text = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB"
        text += f", {machine['accelerator']}" if machine.get("accelerator") else ", no accelerator"
        dates = sorted({run["date"] for run in runs if "date" in run}) or [file.get("date", "")]
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        loads = [run["load_before"] for run in runs if "load_before" in run] or [machine.get("load", 0.0)]
        lines.append(f"| {name} | {file.get('form', '')} | {span} | {max(loads):.1f} | {text} |")
    return "\n".join([*lines, "", *gemm_table(list(files.values())), versions_text(list(files.values())), ""])


def gemm_table(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """The machine's own rates, over all workloads that measured them."""
    lines = ["| Precision | GEMM rate, GFLOP/s |", "|---|---|"]
    for precision in ("fp32", "bf16"):
        rates = [rate / 1e9 for file in files if (rate := figures.gemm(file.get("runs", []), precision))]
        if rates:
            span = f"{min(rates):,.0f}" if len(rates) == 1 else f"{min(rates):,.0f} to {max(rates):,.0f}"
            lines.append(f"| {precision} | {span} |")
    return [*lines, ""] if len(lines) > 2 else []


def versions_text(files: Sequence[Mapping[str, Any]]) -> str:
    """Versions of the libraries that took part, in words."""
    found: dict[str, set[str]] = {}
    for run in (run for file in files for run in file.get("runs", [])):
        for name, version in run.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return "Versions: " + ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found)) + "."


def goals_section(results: Results, *, measured_only: bool) -> str:
    """Every goal, and what was reached."""
    lines = ["## Goals, and what was reached", "", "| Workload | Goal | Reached | |", "|---|---|---|---|"]
    words = {True: "met", False: "**not met**", None: ""}
    told = {name: anchor for name, anchor in WHY.items() if name != "floor" or floorpage.section(results)}
    for goal in (*goals.table(results), *saving.goals(results.get("saving"))):
        if measured_only and goal.reached == NOT_MEASURED:
            continue
        why = f" ([why]({told[goal.why]}))" if goal.met is False and goal.why in told else ""
        lines.append(f"| {goal.workload} | {goal.goal} | {goal.reached} | {words[goal.met]}{why} |")
    return "\n".join([*lines, ""])


def workload_section(
    name: str, title: str, about: str, file: Mapping[str, Any] | None, drawn: Mapping[str, str], charts_in: str
) -> str:
    """One workload: what ran, its figures, its charts, who failed."""
    lines = [f"## {title}", "", about, ""]
    if file is None:
        return "\n".join([*lines, f"{NOT_MEASURED.capitalize()}.", ""])
    measured = figures.of(file["runs"], goals.DEFAULTS)  # not on a processor without products of bf16
    kinds = {
        "scoring": tables.scoring_table,
        "generation": tables.generation_table,
        "startup": tables.startup_table,
        "scaling": tables.scaling_tables,
        "overhead": tables.overhead_table,
        "saving": saving.table,
        "grpo": partial(tables.rollouts_table, beside=goals.DEFAULTS if measured else goals.DEFAULTS_FP32),
        "grpo-long": partial(tables.rollouts_table, beside=goals.DEFAULTS if measured else goals.DEFAULTS_FP32),
        "slow-reward": partial(tables.rollouts_table, beside=ONE_AFTER_THE_OTHER),
        "nf4": partial(tables.training_table, beside=goals.DEFAULTS_FP32),
    }
    lines += kinds.get(name, tables.training_table)(file)
    for chart in (chart for chart in drawn if chart.split("-")[0] == name):
        lines += ["", f"![{chart.replace('-', ' ')}]({charts_in}/{chart}.svg)"]
    failed = figures.failures(file["runs"])
    lines += ["", *(f"- {who} failed: `{line}`" for who, line in failed.items())] if failed else []
    return "\n".join([*lines, ""])


def kernels_section(results: Results) -> str:
    """The log-probability kernel on a GPU: rows of kernels.json, or `not measured`.

    kernels.json: `{"device", "date", "rows": [{"shape", "kernel", "forward_ms", "backward_ms", "memory_bytes"}]}`.
    """
    file = results.get("kernels", {})
    rows = {(row["shape"], row["kernel"]): row for row in file.get("rows", [])}
    shapes = [*goals.KERNEL_SHAPES, *sorted({shape for shape, _ in rows} - set(goals.KERNEL_SHAPES))]
    lines = ["## The log-probability kernel on a GPU", ""]
    lines += [f"Measured on {file['device']}, {file.get('date', '')}.", ""] if file.get("device") else []
    lines += ["Rows x vocabulary x hidden size, bf16. `triton` and `chunked` are finetooth's.", ""]
    lines += ["| Shape | Kernel | Forward, ms | Backward, ms | Memory, MB |", "|---|---|---|---|---|"]
    for shape in shapes:
        for kernel in [*KERNELS, *sorted({k for s, k in rows if s == shape} - set(KERNELS))]:
            row = rows.get((shape, kernel))
            figures_ = [NOT_MEASURED] * 3
            if row is not None:
                figures_ = [
                    f"{row['forward_ms']:.2f}",
                    f"{row['backward_ms']:.2f}",
                    f"{row['memory_bytes'] / 1e6:,.0f}",
                ]
            lines.append(f"| {' | '.join([shape, kernel, *figures_])} |")
    return "\n".join([*lines, ""])
