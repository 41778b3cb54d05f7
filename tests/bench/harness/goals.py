"""The goals and what was reached: each a figure from the result files, its text, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from harness import figures, fits
from harness.fits import Fit
from harness.flops import Shape
from harness.results import Results
from harness.rollout_workloads import ASYNCHRONOUS, ONE_AFTER_THE_OTHER
from harness.workload import TUNED_IN_FP32

NOT_MEASURED = "not measured"
NOT_COMPARABLE = "not comparable: they trained other tokens"
MINE, DEFAULTS, TUNED = "finetooth bf16", "TRL defaults", "TRL tuned"
MINE_FP32, DEFAULTS_FP32 = "finetooth fp32", "TRL fp32"
KERNEL_SHAPES = ("16,384 x 248,320 x 2,048", "8,192 x 151,936 x 1,024")
KERNEL, KERNEL_PEERS = "triton", ("cut-cross-entropy", "liger-kernel")
"""As tests/bench/kernels.py names them."""
NEAR_TIE = {"bf16": 0.25, "fp32": 0.005}
"""Nats. Two bf16 logits of this model closer than that may change places by rounding alone: a bf16 logit near 16 stands
for a range of 0.0625, and each layer rounds too."""


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        workload: letter and measure.
        goal: in words.
        reached: in words.
        met: None where it was not measured, or cannot be judged.
        why: what of the page says why it is not met: `floor`, `first step`, `imports`; empty is nothing.
    """

    workload: str
    goal: str
    reached: str
    met: bool | None
    why: str = ""


def table(results: Results) -> list[Goal]:
    """Every goal."""
    return [
        *_lora(results.get("lora")),
        *_training("(b)", results.get("full")),
        *_training("(c)", results.get("pretrain")),
        *_scoring(results.get("scoring")),
        *_generation(results.get("generation")),
        _help(results.get("startup")),
        *_scaling(results.get("scaling")),
        _overhead(results.get("overhead")),
        *_preferences("(i) DPO", results.get("dpo")),
        *_preferences("(j) reward model", results.get("rm")),
        *_rollouts("(k) GRPO", results.get("grpo")),
        *_rollouts("(n) GRPO, long answers", results.get("grpo-long")),
        *_slow_reward(results.get("slow-reward")),
        *_four_bits(results.get("nf4")),
        *(_kernel(shape, results.get("kernels")) for shape in KERNEL_SHAPES),
        *(_estimate(key, results.get(name)) for key, name in (("(a)", "lora"), ("(b)", "full"), ("(c)", "pretrain"))),
    ]


def ratio_text(values: Sequence[float]) -> str:
    """Median, and the range if there are several."""
    if not values:
        return NOT_MEASURED
    middle = f"{statistics.median(values):.2f}x"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _ratio(
    workload: str,
    goal: str,
    file: Mapping[str, Any] | None,
    first: str,
    second: str,
    field: str,
    bound: float,
    why: str = "floor",
) -> Goal:
    """A goal on a ratio: a bound from 1 up is a least, one below 1 a most."""
    values = figures.ratios(file["runs"], first, second, field) if file else []
    if file and values and not figures.comparable(file["runs"], first, second):
        return Goal(workload, goal, NOT_COMPARABLE, None)
    if not values:
        return Goal(workload, goal, NOT_MEASURED, None)
    middle = statistics.median(values)
    return Goal(workload, goal, ratio_text(values), middle >= bound if bound >= 1 else middle <= bound, why)


def _lora(file: Mapping[str, Any] | None) -> list[Goal]:
    found = [
        _ratio("(a) tokens/s", "≥ 5x TRL defaults", file, MINE, DEFAULTS, "tokens_per_second", 5),
        _ratio("(a) peak memory", "≤ 0.4x TRL defaults", file, MINE, DEFAULTS, "peak_memory_bytes", 0.4, ""),
        _ratio(
            "(a) time to first step", "≤ 0.4x TRL defaults", file, MINE, DEFAULTS, "first_step_s", 0.4, "first step"
        ),
    ]
    bf16, fp32 = (MINE, DEFAULTS), ("finetooth fp32", "TRL fp32")
    goal = "≤ 5e-3 a step, 1e-3 on average"
    found.append(replace(_losses("(a) losses in bf16, beside TRL's", goal, file, *bf16, 5e-3, 1e-3), why="rounding"))
    found.append(_losses("(a) losses in bf16, beside TRL's in fp32", goal, file, MINE, "TRL fp32", 5e-3, 1e-3))
    found.append(_losses("(a) losses in fp32", "≤ 1e-4 a step", file, *fp32, 1e-4, 1e-4))
    part = figures.share(file["runs"], MINE, Shape.of(file["config"])) if file else None
    goal = "≥ 35 %, stretch 50 %"
    text = NOT_MEASURED if part is None else f"{100 * part:.0f} %{', the stretch' if part >= 0.5 else ''}"
    found.append(Goal("(a) share of the bf16 GEMM rate", goal, text, None if part is None else part >= 0.35, "floor"))
    return found


def _losses(
    workload: str, goal: str, file: Mapping[str, Any] | None, first: str, second: str, each: float, mean: float
) -> Goal:
    """Both figures are those of the worst round: the largest difference of a step, and the mean of the absolute
    differences over the steps."""
    rounds = figures.losses(file["runs"], first, second) if file else []
    if file and not figures.comparable(file["runs"], first, second):
        return Goal(workload, goal, NOT_COMPARABLE, None)
    if not rounds:
        return Goal(workload, goal, NOT_MEASURED, None)
    largest, average = max(one.largest for one in rounds), max(one.mean for one in rounds)
    text = f"{largest:.1e} at most, {average:.1e} on average"
    return Goal(workload, goal, text, largest <= each and average <= mean)


def _training(key: str, file: Mapping[str, Any] | None) -> list[Goal]:
    """The goal on speed, and beside it what the losses say: whoever computes something else is not faster."""
    speed = _ratio(f"{key} tokens/s", "≥ 3x TRL defaults", file, MINE, DEFAULTS, "tokens_per_second", 3)
    losses = _losses(f"{key} losses in bf16", "beside TRL's, without a bound", file, MINE, DEFAULTS, inf, inf)
    return [speed, replace(losses, met=None)]


def _rollouts(workload: str, file: Mapping[str, Any] | None) -> list[Goal]:
    """Speed and memory of GRPO; answers are drawn by chance, so nobody's losses can be compared."""
    pairs = ((MINE, DEFAULTS), (MINE, TUNED), (MINE_FP32, DEFAULTS_FP32), (MINE_FP32, TUNED_IN_FP32))
    found = []
    for mine, peer in pairs:
        for text, goal, field, bound in (
            ("samples/s", f"≥ 4x {peer}", "samples_per_second", 4),
            ("samples a second of the processor", f"≥ 4x {peer}", "samples_per_cpu_second", 4),
            ("peak memory", f"≤ 0.4x {peer}", "peak_memory_bytes", 0.4),
        ):
            found.append(_ratio(f"{workload}, {text}", goal, file, mine, peer, field, bound, ""))
    return found


def _slow_reward(file: Mapping[str, Any] | None) -> list[Goal]:
    """What it is worth to answer ahead, and what it costs in reward."""
    speed = _ratio(
        "(l) a slow reward, samples/s", "≥ 1.6x one after the other", file, ASYNCHRONOUS, ONE_AFTER_THE_OTHER,
        "samples_per_second", 1.6, "",
    )  # fmt: skip
    runs = file["runs"] if file else []
    workload, goal = "(l) a slow reward, reward of a step", "that of one after the other, within the interval"
    found = figures.difference(runs, ASYNCHRONOUS, ONE_AFTER_THE_OTHER, "rewards")
    if found is None:
        return [speed, Goal(workload, goal, NOT_MEASURED, None)]
    text = f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}; {found.count} steps)"
    return [speed, Goal(workload, goal, text, found.low <= 0 <= found.high)]


def _four_bits(file: Mapping[str, Any] | None) -> list[Goal]:
    """A base of four bits beside the same in TRL, peft and bitsandbytes."""
    pair = (MINE_FP32, DEFAULTS_FP32)
    return [
        _ratio("(q) tokens/s", "≥ 2x TRL fp32", file, *pair, "tokens_per_second", 2, ""),
        _ratio("(q) tokens a second of the processor", "≥ 2x TRL fp32", file, *pair, "tokens_per_cpu_second", 2, ""),
        _ratio("(q) peak memory", "≤ 0.5x TRL fp32", file, *pair, "peak_memory_bytes", 0.5, ""),
        _losses("(q) losses over the same 4 bits", "≤ 1e-3 a step", file, *pair, 1e-3, 1e-3),
    ]


def _preferences(key: str, file: Mapping[str, Any] | None) -> list[Goal]:
    """Speed and memory of a method on pairs, and the losses of both sides."""
    speed = _ratio(f"{key}, pairs/s", "≥ 4x TRL defaults", file, MINE, DEFAULTS, "pairs_per_second", 4)
    memory = _ratio(f"{key}, peak memory", "≤ 0.4x TRL defaults", file, MINE, DEFAULTS, "peak_memory_bytes", 0.4, "")
    losses = _losses(f"{key}, losses in bf16", "beside TRL's, without a bound", file, MINE, DEFAULTS, inf, inf)
    exact = _losses(f"{key}, losses in fp32", "≤ 1e-4 a step", file, "finetooth fp32", "TRL fp32", 1e-4, 1e-4)
    return [speed, memory, replace(losses, met=None), exact]


def _scoring(file: Mapping[str, Any] | None) -> list[Goal]:
    field = "tokens_per_second"
    same, default = "transformers bf16", "transformers default (fp32)"
    found = [
        _ratio("(d) tokens/s, same dtype", "≥ 3x a plain transformers forward", file, MINE, same, field, 3),
        _ratio("(d) tokens/s, its default", "≥ 3x a plain transformers forward", file, MINE, default, field, 3),
    ]
    goal = "flat in the vocabulary"
    workload = "(d) working memory, vocabulary x4"
    small = figures.median(file["runs"], MINE, "working_bytes") if file else None
    large = figures.median(file["runs"], f"{MINE}, vocabulary x4", "working_bytes") if file else None
    if not small or large is None:
        return [*found, Goal(workload, goal, NOT_MEASURED, None)]
    text = f"{large / small:.2f}x ({small / 1e6:.0f} to {large / 1e6:.0f} MB)"
    return [*found, Goal(workload, goal, text, large / small <= 1.1)]


def _generation(file: Mapping[str, Any] | None) -> list[Goal]:
    found = []
    for precision in ("bf16", "fp32"):
        ours, theirs = f"finetooth {precision}", f"transformers {precision}"
        for mode in ("greedy", "sampled"):
            field = f"modes.{mode}.tokens_per_second"
            found.append(_ratio(f"(e) tokens/s, {mode}, {precision}", "≥ 2x generate", file, ours, theirs, field, 2))
        parting = (file or {}).get("comparisons", {}).get(precision)
        workload, goal = f"(e) greedy tokens, {precision}", "equal but at near-ties"
        if parting is None:
            found.append(Goal(workload, goal, NOT_MEASURED, None))
            continue
        wide = [one for one in parting["parted"] if abs(one["gap"]) > NEAR_TIE[precision]]
        equal = parting["rows"] - len(parting["parted"])
        text = f"{equal} of {parting['rows']} equal, {len(parting['parted']) - len(wide)} part at a near-tie, "
        found.append(Goal(workload, goal, f"{text}{len(wide)} elsewhere", not wide))
    return found


def _help(file: Mapping[str, Any] | None) -> Goal:
    seconds = [s for run in (file or {}).get("runs", []) for s in run.get("seconds", {}).get("ft --help", [])]
    if not seconds:
        return Goal("(f) `ft --help`", "≤ 0.2 s", NOT_MEASURED, None)
    middle = statistics.median(seconds)
    return Goal("(f) `ft --help`", "≤ 0.2 s", f"{middle:.2f} s", middle <= 0.2, "imports")


ROWS_PEERS = ("datasets.map", "datasets.map with mask")
"""What finetooth is compared with where rows are prepared."""


def curve(file: Mapping[str, Any] | None, name: str, *, peer: str = "") -> list[Mapping[str, Any]]:
    """Runs of one scaling curve by x, finetooth's own or a peer's: medians stand for rounds."""
    runs = [run for run in (file or {}).get("runs", []) if run.get("curve") == name and not run.get("failed")]
    whose = [run["contender"].rpartition(", ")[2] if "datasets.map" in run["contender"] else "" for run in runs]
    runs = [run for run, found in zip(runs, whose, strict=True) if found == peer]
    by_x: dict[float, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_x.setdefault(run["x"], []).append(run)
    return [sorted(by_x[x], key=_seconds)[len(by_x[x]) // 2] for x in sorted(by_x)]


def _seconds(run: Mapping[str, Any]) -> float:
    return float(run.get("train_s", run.get("seconds", 0.0)))


def _scaling(file: Mapping[str, Any] | None) -> list[Goal]:
    return [_time_of_steps(file), _time_of_rows(file), _preparing(file), _against_map(file), _second_start(file)]


LONGEST, MOST_ROWS, MOST_PREPARED = (128, 4096), (1, 64), (1_000, 1_000_000)
"""The ranges that the goals speak of."""
LINEAR = 0.10
"""A fit holds if its points lie no farther from it than so: typically for steps, the largest point for rows."""


def covered(file: Mapping[str, Any] | None, name: str, ends: tuple[int, int]) -> bool:
    """Was the curve measured from end to end?"""
    return set(ends) <= {run["x"] for run in curve(file, name)}


def steps_fit(file: Mapping[str, Any] | None) -> Fit | None:
    """Warm steps of all lengths and batch sizes as so much a step, a token, and a pair of tokens that attention looks
    at; None if there are too few points."""
    runs = [run for name in ("length", "batch") for run in curve(file, name)]
    terms: dict[str, list[float]] = {"step": [], "token": [], "pair": []}
    seconds = []
    for run in runs:
        if len(run.get("step_tokens", ())) < 2:
            continue
        for name, counts in (("token", run["step_tokens"]), ("pair", run["step_pairs"])):
            terms[name].append(statistics.fmean(counts[1:]))
        terms["step"].append(1.0)
        seconds.append(statistics.fmean(run["step_s"][1:]))
    return fits.fit(terms, seconds) if len(seconds) > len(terms) else None


def rows_fit(file: Mapping[str, Any] | None) -> Fit | None:
    """Preparing rows as so much for a start and so much for a row; None if there are too few points."""
    runs = curve(file, "rows")
    terms = {"start": [1.0] * len(runs), "row": [float(run["x"]) for run in runs]}
    return fits.fit(terms, [run["seconds"] for run in runs]) if len(runs) > len(terms) else None


def _time_of_steps(file: Mapping[str, Any] | None) -> Goal:
    workload, goal = "(g) time of a step, 128 to 4,096 long, 1 to 64 rows", "linear in tokens, attention apart"
    found = steps_fit(file)
    if found is None:
        return Goal(workload, goal, NOT_MEASURED, None)
    text = (
        f"{1e3 * found.costs['step']:.0f} ms a step + {1e3 * found.costs['token']:.2f} ms a token + "
        f"{1e6 * found.costs['pair']:.2f} us a pair that attention looks at: the points lie "
        f"{100 * found.typical:.0f} % off, at most {100 * found.largest:.0f} %"
    )
    whole = covered(file, "length", LONGEST) and covered(file, "batch", MOST_ROWS)
    return Goal(workload, goal, text, found.typical <= LINEAR) if whole else _in_part(workload, goal, text)


def _time_of_rows(file: Mapping[str, Any] | None) -> Goal:
    workload, goal = "(g) time to prepare 10^3 to 10^6 rows", "linear in rows"
    found = rows_fit(file)
    if found is None:
        return Goal(workload, goal, NOT_MEASURED, None)
    last = found.residuals[-1]
    text = (
        f"{found.costs['start']:.1f} s + {1e3 * found.costs['row']:.3f} ms a row: the points lie "
        f"{100 * found.typical:.0f} % off, the largest {100 * abs(last):.0f} % {'above' if last > 0 else 'below'}"
    )
    whole = covered(file, "rows", MOST_PREPARED)
    return Goal(workload, goal, text, last <= LINEAR) if whole else _in_part(workload, goal, text)


def _in_part(workload: str, goal: str, text: str) -> Goal:
    return Goal(workload, goal, f"{text}; not the whole range was measured", None)


MOST_MEMORY = 1.5e9
"""Bytes that preparing any number of rows may take."""


def _preparing(file: Mapping[str, Any] | None) -> Goal:
    """Memory against ten times fewer rows, which take as many processes."""
    rows = curve(file, "rows")
    workload, goal = "(g) preparing 10^6 rows", "constant memory (≤ 1.5 GB), cached, all cores"
    if file is None or not covered(file, "rows", MOST_PREPARED):
        return Goal(workload, goal, NOT_MEASURED, None)
    last, fewer = rows[-1], rows[-2]
    growth = last["peak_memory_bytes"] / fewer["peak_memory_bytes"]
    busy, cores = last.get("cpu_s", 0.0) / last["seconds"], file["machine"]["cores"]
    text = (
        f"{last['rows_per_second']:,.0f} rows/s; {last['peak_memory_bytes'] / 1e9:.2f} GB, {growth:.2f}x the memory of "
        f"{fewer['x']:,} rows; again from the cache in {last['warm_s'] / last['seconds']:.2f}x the time; {busy:.1f} of "
        f"{cores} cores busy"
    )
    small = growth <= 1.1 and last["peak_memory_bytes"] <= MOST_MEMORY
    return Goal(workload, goal, text, small and last["warm_s"] <= 0.5 * last["seconds"] and busy >= 0.75 * cores)


def _against_map(file: Mapping[str, Any] | None) -> Goal:
    """At the largest number of rows that both prepared."""
    workload, goal = "(g) preparing rows", "≥ 2x datasets.map with mask"
    ours = {run["x"]: run for run in curve(file, "rows")}
    both = [(run, ours[run["x"]]) for run in curve(file, "rows", peer=ROWS_PEERS[1]) if run["x"] in ours]
    if not both:
        return Goal(workload, goal, NOT_MEASURED, None)
    theirs, mine = both[-1]
    ratio = mine["rows_per_second"] / theirs["rows_per_second"]
    return Goal(workload, goal, f"{ratio:.2f}x at {mine['x']:,} rows", ratio >= 2)


def _second_start(file: Mapping[str, Any] | None) -> Goal:
    """What the data of the largest curve point take when they lie in the cache; a program's own start apart."""
    workload, goal = "(g) second start", "≤ 1 s for the data"
    last = next((run for run in reversed(curve(file, "rows")) if "warm_data_s" in run), None)
    if last is None:
        return Goal(workload, goal, NOT_MEASURED, None)
    return Goal(workload, goal, f"{last['warm_data_s']:.2f} s at {last['x']:,} rows", last["warm_data_s"] <= 1)


def _overhead(file: Mapping[str, Any] | None) -> Goal:
    workload, goal = "Hooks and tracking", "< 1 % of a step"
    part = overhead(file)
    if part is None:
        return Goal(workload, goal, NOT_MEASURED, None)
    return Goal(workload, goal, f"{100 * part:.2f} %", part < 0.01)


def overhead(file: Mapping[str, Any] | None, contender: str = "three trackers, two plugins") -> float | None:
    """Share of a step that telling trackers and plugins takes, all rounds together; None if it was not measured."""
    runs = list(figures.of((file or {}).get("runs", []), contender).values())
    told, steps = (sum(sum(run[name]) for run in runs) for name in ("tell_s", "step_s"))
    return told / steps if steps else None


def _kernel(shape: str, file: Mapping[str, Any] | None) -> Goal:
    """Forward and backward together, and memory, against the better of the two peers."""
    workload, goal = f"Kernel on a GPU, {shape}", "time and memory below cut-cross-entropy and Liger"
    rows = {row["kernel"]: row for row in (file or {}).get("rows", []) if row["shape"] == shape}
    if KERNEL not in rows or not all(peer in rows for peer in KERNEL_PEERS):
        return Goal(workload, goal, NOT_MEASURED, None)
    times = {name: row["forward_ms"] + row["backward_ms"] for name, row in rows.items()}
    time = times[KERNEL] / min(times[peer] for peer in KERNEL_PEERS)
    memory = rows[KERNEL]["memory_bytes"] / min(rows[peer]["memory_bytes"] for peer in KERNEL_PEERS)
    return Goal(workload, goal, f"{time:.2f}x the time, {memory:.2f}x the memory", time < 1 and memory < 1)


def _estimate(key: str, file: Mapping[str, Any] | None) -> Goal:
    workload, goal = f"{key} the plan's memory estimate", "within 20 % of the peak"
    runs = figures.of(file["runs"], MINE) if file else {}
    told = [run for run in runs.values() if "memory_estimate_bytes" in run]
    parts = [run["memory_estimate_bytes"] / run["peak_memory_bytes"] for run in told]
    if not parts:
        return Goal(workload, goal, NOT_MEASURED, None)
    middle = statistics.median(parts)
    return Goal(workload, goal, f"{100 * (middle - 1):+.0f} %", abs(middle - 1) <= 0.2)
