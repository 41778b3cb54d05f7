"""docs/benchmarks.md and its charts, from the result files. The same files always give the same bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from harness import charts, figures, goals
from harness.flops import Shape
from harness.goals import NOT_MEASURED
from harness.results import Results
from harness.workloads import WORKLOADS

PAGE = "benchmarks.md"
PROSE = 110
TRAINING = ("lora", "full", "pretrain")
KERNEL_SHAPES = ("16,384 x 248,320 x 2,048", "8,192 x 151,936 x 1,024")
KERNELS = ("finetooth", "cut-cross-entropy", "Liger")

OPENING = """\
# Benchmarks

finetooth against what one would pick instead. Everything here is drawn from the files in [benchmarks](benchmarks) by
`tests/bench/run.py`; run it again with

<!-- not run: it takes half an hour and other environments -->
```sh
make bench-peers   # TRL, transformers and LLaMA-Factory in environments of their own
make bench-quick   # at most half an hour on two cores
make bench         # every size, three rounds
```

Each contender is a process of its own, and they take turns (A B A B), so that a machine that gets slower slows
everybody. Figures are medians over rounds; a ratio is taken between the two runs of one round, then the median, with
the range behind it. Tokens are input tokens that are not padding; the time is from the beginning of the first step to
the end of the last, so warm-up counts. Peak memory is the largest sum of resident memory over a process and its
children. Time to the first step is from the start of the process to the end of the first optimizer step. A share of
the GEMM rate counts only FLOPs that were executed, by finetooth's own count or by formula
([flops.py](../tests/bench/harness/flops.py)), against the best matrix product that the same machine did in the same
run.
"""


def render(results: Results) -> dict[str, str]:
    """The page and its charts, by path below docs/."""
    drawn = drawings(results)
    parts = [OPENING, machine_section(results), goals_section(results)]
    for workload in WORKLOADS:
        file = results.get(workload.name)
        if workload.name == "profile" or (workload.name == "tuning" and file is None):
            continue
        parts.append(workload_section(workload.name, workload.title, workload.about, file, drawn))
    parts += [floor_section(results), kernels_section(results)]
    files = {f"benchmarks/{name}.svg": text for name, text in drawn.items()}
    return {PAGE: wrapped("\n".join(part for part in parts if part)), **files}


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


def machine_section(results: Results) -> str:
    """What it was measured on, and with what."""
    files = [file for file in results.values() if "machine" in file]
    if not files:
        return "Nothing has been measured yet.\n"
    lines = ["## What it was measured on", "", "| Workload | Form | Date | Machine |", "|---|---|---|---|"]
    for name, file in results.items():
        if "machine" not in file:
            continue
        machine = file["machine"]
        text = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
        text += f", {machine['accelerator']}" if machine.get("accelerator") else ", no accelerator"
        dates = sorted({run["date"] for run in file.get("runs", []) if "date" in run})
        lines.append(
            f"| {name} | {file.get('form', '')} | {' to '.join(dict.fromkeys(dates[:1] + dates[-1:]))} | {text} |"
        )
    lines += ["", "| Precision | GEMM rate, GFLOP/s |", "|---|---|"]
    for precision in ("fp32", "bf16"):
        rates = [rate for file in files if (rate := figures.gemm(file.get("runs", []), precision))]
        if rates:
            span = (
                f"{min(rates) / 1e9:,.0f}" if len(rates) == 1 else f"{min(rates) / 1e9:,.0f} to {max(rates) / 1e9:,.0f}"
            )
            lines.append(f"| {precision} | {span} |")
    return "\n".join([*lines, "", versions_text(files), ""])


def versions_text(files: Sequence[Mapping[str, Any]]) -> str:
    """Versions of the libraries that took part, in words."""
    found: dict[str, set[str]] = {}
    for run in (run for file in files for run in file.get("runs", [])):
        for name, version in run.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return "Versions: " + ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found)) + "."


def goals_section(results: Results) -> str:
    """Every goal, and what was reached."""
    lines = ["## Goals, and what was reached", "", "| Workload | Goal | Reached | |", "|---|---|---|---|"]
    words = {True: "met", False: "**not met**", None: ""}
    lines += [f"| {g.workload} | {g.goal} | {g.reached} | {words[g.met]} |" for g in goals.table(results)]
    return "\n".join([*lines, ""])


def workload_section(
    name: str, title: str, about: str, file: Mapping[str, Any] | None, drawn: Mapping[str, str]
) -> str:
    """One workload: what ran, its figures, its charts, who failed."""
    lines = [f"## {title}", "", about, ""]
    if file is None:
        return "\n".join([*lines, f"{NOT_MEASURED.capitalize()}.", ""])
    tables = {
        "scoring": scoring_table,
        "generation": generation_table,
        "startup": startup_table,
        "scaling": scaling_tables,
        "overhead": overhead_table,
    }
    lines += tables.get(name, training_table)(file)
    for chart in (chart for chart in drawn if chart.split("-")[0] == name):
        lines += ["", f"![{chart.replace('-', ' ')}](benchmarks/{chart}.svg)"]
    failed = figures.failures(file["runs"])
    lines += ["", *(f"- {who} failed: `{line}`" for who, line in failed.items())] if failed else []
    return "\n".join([*lines, ""])


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


def floor_section(results: Results) -> str:
    """Where a warm step's time goes, and how fast it could be if only the counted FLOPs ran, at the GEMM rate."""
    file = results.get("profile")
    runs = list(figures.of((file or {}).get("runs", []), "finetooth bf16").values())
    if file is None or not runs:
        return ""
    recorded = runs[0]["table"].strip().splitlines()
    told = [f"##{line}" if line.startswith("#") else line for line in recorded]
    lines = ["## What the floor is", "", "Two warm steps of (a) in bf16, recorded by finetooth's own profile mode.", ""]
    lines += told
    lora = results.get("lora")
    rate = figures.gemm(lora["runs"], "bf16") if lora else None
    mine = list(figures.of(lora["runs"], goals.MINE).values()) if lora else []
    if lora and rate and mine:
        done = figures.executed(mine[0], Shape.of(lora["config"])) or 0.0
        tokens, speed = mine[0]["tokens"], figures.median(lora["runs"], goals.MINE, "tokens_per_second") or 0.0
        lines += [
            "",
            f"(a) executes {done / tokens / 1e9:.2f} GFLOP a token. At the machine's whole GEMM rate "
            f"({rate / 1e9:,.0f} GFLOP/s) that is {tokens * rate / done:,.0f} tokens a second: the floor, if all but "
            f"matrix products took no time. Reached: {speed:,.0f}.",
        ]
    return "\n".join([*lines, ""])


def kernels_section(results: Results) -> str:
    """The log-probability kernel on a GPU: rows of kernels.json, or `not measured`.

    kernels.json: `{"device", "date", "rows": [{"shape", "kernel", "forward_ms", "backward_ms", "memory_bytes"}]}`.
    """
    file = results.get("kernels", {})
    rows = {(row["shape"], row["kernel"]): row for row in file.get("rows", [])}
    shapes = [*KERNEL_SHAPES, *sorted({shape for shape, _ in rows} - set(KERNEL_SHAPES))]
    lines = ["## The log-probability kernel on a GPU", ""]
    lines += [f"Measured on {file['device']}, {file.get('date', '')}.", ""] if file.get("device") else []
    lines += ["Rows x vocabulary x hidden size, bf16, forward and backward in one run.", ""]
    lines += ["| Shape | Kernel | Forward, ms | Backward, ms | Memory, MiB |", "|---|---|---|---|---|"]
    for shape in shapes:
        for kernel in [*KERNELS, *sorted({k for s, k in rows if s == shape} - set(KERNELS))]:
            row = rows.get((shape, kernel))
            figures_ = [NOT_MEASURED] * 3
            if row is not None:
                figures_ = [
                    f"{row['forward_ms']:.2f}",
                    f"{row['backward_ms']:.2f}",
                    f"{row['memory_bytes'] / 2**20:,.0f}",
                ]
            lines.append(f"| {' | '.join([shape, kernel, *figures_])} |")
    return "\n".join([*lines, ""])


def number(value: float | None, digits: int, unit: float = 1.0) -> str:
    """A figure for a table."""
    return NOT_MEASURED if value is None else f"{value / unit:,.{digits}f}"
