"""The page of `measure_fit.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fit_recipes import CELLS, ROWS, STEPS

START = """# What fits costs

SmolLM2-135M in fp32 on a CPU, each line a process of its own, written by

<!-- not run: it takes hours -->
```sh
python tools/measure_fit.py
```

Loss is that of 8 held-out rows, before the first step and after the last: {steps} over quantised bases,
{more} with adapters and optimizers. Memory is the peak of the process in MB beside what the plan said.
Seconds are of a step, the median of seven, on a machine that did nothing else (`--timed`). A run resumes bit for
bit if it ends with the same bytes, of its weights and of the optimizer's state, when it is taken up again from the
checkpoint of its middle.
"""
HEADS = {
    "quantizer": (
        "## Quantizers\n\nA LoRA of rank 8. The forward error is how far log-probabilities of a text move on average; "
        "the peer is TRL with peft and bitsandbytes.\n\n"
        "The base flatters `int4`: its file stores linear weights in 4 bits by groups of 32, a least value and a step "
        "for each, which is the grid of `int4` too. Rounded to it again the weights stay as they are (error 0.000), "
        "and what is left of 0.024 is its scales, which are fp16. On every other grid they lie elsewhere. bitsandbytes "
        "alone, its functions over the same weights and plain transformers over their numbers, errs as much as the "
        "table says: 0.490 with nf4 (0.489 without double quantisation, and the same with the paper's levels in plain "
        "torch), 0.871 with fp4. So do other formats of 4 bits: by groups of 32 without a least value 0.652, by "
        "groups of 64 with one 0.649. nf4 moves a weight matrix by 9.4 % of its norm, fp4 by 12.6 %, and 135M "
        "parameters, rounded once before, bear that badly; read those lines as a second rounding beside none.",
        ("quantizer", "forward error", "loss before", "after", "planned", "peak", "off by", "s/step", "peer s/step",
         "peer peak"),
    ),
    "adapter": ("## Adapters", ("adapter", "loss before", "after", "planned", "peak", "off by", "resumes", "s/step")),
    "optimizer": (
        "## Optimizers\n\nAll weights train. The paged optimizers of bitsandbytes run on CUDA only.",
        ("optimizer", "loss before", "after", "planned", "peak", "off by", "resumes", "s/step"),
    ),
}  # fmt: skip


def page(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown of all that was measured."""
    steps, more = (f"{STEPS[kind]} steps of {ROWS[kind]} rows" for kind in ("quantizer", "adapter"))
    parts = [START.format(steps=steps, more=more)]
    for kind, (text, columns) in HEADS.items():
        rows = [_row(name, figures.get(name), columns) for name in CELLS if name.startswith(f"{kind}:")]
        head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
        parts.append("\n".join([_wrapped(text), "", head, *rows, ""]))
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    import textwrap

    return "\n\n".join("\n".join(textwrap.wrap(one, 116)) for one in text.split("\n\n"))


def _row(cell: str, found: Mapping[str, Any] | None, columns: tuple[str, ...]) -> str:
    name = f"`{cell.partition(':')[2]}`"
    if found is None:
        return f"| {name} | {' | '.join(['not measured', *[''] * (len(columns) - 2)])} |"
    if "failed" in found:
        said = str(found["failed"]).replace("|", "/")[:60]
        return f"| {name} | {' | '.join([said, *[''] * (len(columns) - 2)])} |"
    known = {
        "forward error": _number(found.get("forward"), 3),
        "loss before": _number(found.get("before"), 3),
        "after": _number(found.get("after"), 3),
        "planned": _megabytes(found["planned"]),
        "peak": _megabytes(found["peak"]),
        "off by": f"{found['planned'] / found['peak'] - 1:+.0%}",
        "resumes": {True: "bit for bit", False: "no", None: ""}[found.get("resumes")],
        "s/step": _number(found.get("seconds"), 2),
        "peer s/step": _number(found.get("peer_seconds"), 2),
        "peer peak": _megabytes(found.get("peer_peak")),
    }
    return f"| {name} | {' | '.join(known[column] for column in columns[1:])} |"


def _megabytes(mebibytes: int | None) -> str:
    return "" if mebibytes is None else str(round(mebibytes * 2**20 / 1e6))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
