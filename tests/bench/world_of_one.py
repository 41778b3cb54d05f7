"""Measure what a strategy costs on one rank, and write docs/benchmarks/world-of-one.md.

    python tests/bench/world_of_one.py [--rounds 3] [--page]

A run by itself and the same run as the only rank of each strategy, by turns in each round. A step's time is that of
metrics.jsonl; the first step of a process is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks/world-of-one.md"
WAYS = ("by itself", "ddp", "fsdp", "context")
STEPS, BATCH = 9, 8
ROWS = [
    {"prompt": f"What is {n} plus {n}? Explain it.", "completion": f"It is {2 * n}. One adds it to itself. " * 6}
    for n in range(STEPS * BATCH)
]


def main() -> int:
    """Measure by turns, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="write the page")
    arguments = parser.parse_args()
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
        for number in range(arguments.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                seconds[way].append(run(folder, f"{way.split()[0]}-{number}", way))
    written = page(seconds)
    print(written)
    if arguments.page:
        PAGE.write_text(written, encoding="utf-8")
    return 0


def run(folder: Path, name: str, way: str) -> list[float]:
    """Seconds of each step but the first."""
    recipe: dict[str, Any] = {
        "model": "smollm2-135m", "data": {"train": "rows.jsonl"}, "adapter": "lora", "trackers": ["jsonl"],
        "train": {"max_steps": STEPS, "batch_size": BATCH, "max_length": 256, "precision": "fp32"}, "output": name,
    }  # fmt: skip
    place: Mapping[str, str] = {}
    if way != WAYS[0]:
        recipe["scale"] = {"strategy": way}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    (folder / f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "finetooth", "run", f"{name}.json"]
    subprocess.run(command, cwd=folder, env={**os.environ, **place}, stdout=subprocess.DEVNULL, check=True)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [float(line["seconds"]) for line in lines if line["event"] == "step"][1:]


def page(seconds: Mapping[str, list[list[float]]]) -> str:
    """Steps of all rounds: a way's middle one, and its quickest, against the run by itself."""
    steps = {way: sorted(second for of_round in rounds for second in of_round) for way, rounds in seconds.items()}
    alone = steps[WAYS[0]]
    about = (
        f"Written by `tests/bench/world_of_one.py --page`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
        f"{os.cpu_count()} cores. SmolLM2-135M, LoRA, fp32, {BATCH} rows a step, {len(seconds[WAYS[0]])} rounds by "
        f"turns of {STEPS - 1} counted steps each. The goal is 2 % at most."
    )
    head = ["| way | median of a step | against alone | quickest step | against alone |", "|---|---|---|---|---|"]
    rows = []
    for way, of_way in steps.items():
        figures = (statistics.median(of_way), statistics.median(alone)), (of_way[0], alone[0])
        cells = [f"{own:.3f} s | {100 * (own / other - 1):+.1f} %" for own, other in figures]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(["# What a strategy costs on one rank", "", textwrap.fill(about, 120), "", *head, *rows, ""])


if __name__ == "__main__":
    raise SystemExit(main())
