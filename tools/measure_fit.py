"""What quantizers, adapters and optimizers cost a small model: each cell measured in a process of its own.

    python tools/measure_fit.py [--only quantizer:int4 ...] [--timed] [--list] [--page]

A cell is KIND:NAME and lands in tests/bench/results/fit.json (memory in MiB) as soon as it is there; what is there is
not measured again, so that an interrupted call can be repeated. Times are measured with `--timed`, of cells that are
there and have none, over a few steps of their own, and of a peer (TRL with peft and bitsandbytes) beside those
quantizers that it has; run that on a machine that does nothing else. `--page` only writes docs/benchmarks/fit.md from
what is there, as every call does at its end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fit_page import page
from fit_recipes import CELLS, recipe, timed_recipe

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PAGE = ROOT / "tests/bench/results/fit.json", ROOT / "docs/benchmarks/fit.md"
LONGEST = 1800
"""Seconds of a cell."""
UNTIMED, TIMED = ("measured", "plain"), ("timed", "rows", "peer")
"""What is done, each in a process of its own."""
PLACE = {"rows": "peer"}
"""The peer reads what another process wrote beside it: its own peak memory holds nothing of finetooth."""


def measure(cell: str, ways: Sequence[str]) -> dict[str, Any]:
    """Run one cell; where it fails, the last line that it said."""
    made = timed_recipe if ways is TIMED else recipe
    with tempfile.TemporaryDirectory(prefix="fit-") as folder:
        found: dict[str, Any] = {}
        for way in ways:
            script = Path(__file__).with_name("fit_cell.py")
            told = json.dumps(made(cell, f"{folder}/{PLACE.get(way, way)}"))
            command = [sys.executable, str(script), way, told, cell]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False, cwd=folder)
            except subprocess.TimeoutExpired:
                return {"failed": f"longer than {LONGEST} s"}
            lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
            if not lines:
                return {**found, "failed": last_line(done.stderr, folder)}
            found |= json.loads(lines[-1].removeprefix("found "))
    return found


def last_line(said: str, folder: str) -> str:
    """What a cell that failed said last, without paths of this machine."""
    return (said.strip() or "it said nothing").splitlines()[-1].replace(folder, "").replace(str(ROOT), "")[:200]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CELLS), help="cells by name; default all")
    parser.add_argument("--timed", action="store_true", help="the machine does nothing else: measure times")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--list", action="store_true", help="print the cells")
    parser.add_argument("--page", action="store_true", help="only write the page")
    told = parser.parse_args(arguments)
    if unknown := sorted(set(told.only) - CELLS.keys()):
        parser.error(f"no cell is named {', '.join(unknown)}")
    if told.list:
        print("\n".join(CELLS))
        return 0
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    for cell in [] if told.page else told.only:
        have = figures.get(cell, {})
        known = bool(have) and "failed" not in have
        if told.timed and not known:
            continue  # its times would say nothing
        if not told.again and ("seconds" in have if told.timed else known):
            continue
        found = measure(cell, TIMED if told.timed else UNTIMED)
        print(cell, found, flush=True)
        if told.timed and "failed" in found:
            continue
        figures[cell] = {**have, **found} if told.timed else found
        ordered = {name: figures[name] for name in CELLS if name in figures}
        FIGURES.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
