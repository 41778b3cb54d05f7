"""Measure what a strategy costs on one rank, and write docs/benchmarks/world-of-one.md.

    python tests/bench/world_of_one.py [--pairs 30] [--page]

For each strategy one process holds two engines of the same recipe, one by itself and one as the only rank of the
strategy. They take the same steps by turns, so that whatever else the machine does meets both.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks/world-of-one.md"
WAYS = ("ddp", "fsdp", "context")
WARM, BATCH = 3, 2
ROWS = [
    {"prompt": f"What is {n} plus {n}? Explain it.", "completion": f"It is {2 * n}. One adds it to itself. " * 6}
    for n in range(64)
]


def main() -> int:
    """Measure each strategy in a process of its own, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--page", action="store_true", help="write the page")
    parser.add_argument("--way", help="measure this strategy, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(pairs(arguments.way, arguments.pairs)))
        return 0
    seconds: dict[str, list[list[float]]] = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--pairs", str(arguments.pairs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds[way] = json.loads(done.stdout.splitlines()[-1])
    written = page(seconds)
    print(written)
    if arguments.page:
        PAGE.write_text(written, encoding="utf-8")
    return 0


def pairs(way: str, count: int) -> list[list[float]]:
    """Seconds of a step by itself and of the same step under the strategy, of each pair.

    Raises:
        RuntimeError: losses differ, so that the two have not computed the same.
    """
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        folder = Path(scratch)
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        alone = stepper(folder, "alone", {})
        place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        spread = stepper(folder, way, {"scale": {"strategy": way}})
        measured = []
        for number in range(WARM + count):
            order = (alone, spread) if number % 2 else (spread, alone)
            took = {step: step(number) for step in order}
            losses, of_pair = zip(took[alone], took[spread], strict=True)
            if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
                raise RuntimeError(f"step {number}: loss {losses[0]} by itself, {losses[1]} under {way}")
            measured.append(list(of_pair))
    return measured[WARM:]


def stepper(folder: Path, name: str, changes: dict[str, Any]) -> Callable[[int], tuple[float, float]]:
    """A function that takes a step, and gives its loss and its seconds."""
    import finetooth

    recipe: dict[str, Any] = {
        "model": "smollm2-135m", "data": {"train": str(folder / "rows.jsonl")}, "adapter": "lora",
        "train": {"batch_size": BATCH, "max_length": 256, "precision": "fp32", "max_steps": 1000},
        "output": str(folder / name), **changes,
    }  # fmt: skip
    session = finetooth.session(recipe)
    data, loss, engine = list(session.job.method.data), session.context.loss("cross_entropy"), session.engine
    engine.set_total_steps(1000)

    def step(number: int) -> tuple[float, float]:
        batch = [data[(number * BATCH + place) % len(data)] for place in range(BATCH)]
        began = time.perf_counter()
        result = engine.forward_backward(batch, loss)
        engine.step()
        return float(result.loss or 0.0), time.perf_counter() - began

    return step


def page(seconds: dict[str, list[list[float]]]) -> str:
    """Medians of the steps, and the median of how much longer a step takes than the one that it is paired with."""
    count = len(next(iter(seconds.values())))
    about = (
        f"Written by `tests/bench/world_of_one.py --page`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
        f"{os.cpu_count()} cores. SmolLM2-135M, LoRA, fp32, {BATCH} rows a step; for each strategy {count} pairs of "
        "steps by turns in one process, with equal losses. The goal is 2 % at most."
    )
    head = ["| strategy | a step by itself | under the strategy | longer, median of pairs |", "|---|---|---|---|"]
    rows = []
    for way, of_way in seconds.items():
        alone, spread = (statistics.median(side) for side in zip(*of_way, strict=True))
        longer = statistics.median(own / other - 1 for other, own in of_way)
        rows.append(f"| {way} | {alone:.3f} s | {spread:.3f} s | {100 * longer:+.1f} % |")
    return "\n".join(["# What a strategy costs on one rank", "", textwrap.fill(about, 120), "", *head, *rows, ""])


if __name__ == "__main__":
    raise SystemExit(main())
