"""Compare two checkouts step by step: one process each, in turns, so that a machine that gets slower slows both alike.

    python tests/bench/lockstep.py BEFORE AFTER --only a,c,e,i [--steps 12] [--starts 3]

BEFORE and AFTER are checkouts with an environment each (`make install`). One thread each; what counts is the
processor's time of a step, and the clock beside it. Whole runs wander by more than a change of a few per cent moves
them; pairs of steps do not. A process's layout in memory moves its speed too, so `--starts` starts both anew. What is
printed is the median of before over after: below 1, AFTER is slower. Both must give the same losses, or tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.workloads import pick
from run import CONTENDERS, OFFLINE, Bench, bench_of, parse

SIZES: Mapping[str, Mapping[str, Any]] = {
    "a": {"batch_size": 2, "adapter": "lora"},
    "c": {"batch_size": 1, "length": 256, "adapter": "full", "method": "pretrain"},
    "i": {"batch_size": 2, "adapter": "lora", "method": "dpo"},
    "e": {"prompts": 8, "new_tokens": 16},
}
"""Much smaller than the workloads', so that there are many pairs of steps, and what is ours in them counts for more."""

COUNTED = {"a": "rows", "c": "windows", "i": "preferred"}
"""What is read, `batch_size` for each step."""


@dataclass(frozen=True)
class Turn:
    """One step of one side.

    Attributes:
        cpu_s: processor's time, all threads.
        wall_s: by the clock.
        value: the loss, or a digest of the tokens.
    """

    cpu_s: float
    wall_s: float
    value: Any


class Side:
    """A process that steps when it is told to."""

    def __init__(self, checkout: Path, spec: Mapping[str, Any], scratch: Path) -> None:
        scratch.mkdir(parents=True)
        told = scratch / "spec.json"
        told.write_text(json.dumps({**spec, "scratch": str(scratch)}), encoding="utf-8")
        environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(checkout / ".venv/bin/python"), str(CONTENDERS / "ours_steps.py"), str(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def step(self) -> Turn:
        """The next step.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return Turn(**json.loads(line))
        raise RuntimeError(f"a side ended with {self._process.wait()}")

    def end(self) -> None:
        """No more steps."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


def pairs(sides: Sequence[Side], steps: int) -> list[tuple[Turn, Turn]]:
    """Steps in turns; who goes first changes every time. The first pair is a warm-up and left out.

    Raises:
        RuntimeError: a side ended, or the two do not give the same.
    """
    found = []
    for index in range(steps + 1):
        order = (0, 1) if index % 2 else (1, 0)
        took = {side: sides[side].step() for side in order}
        if took[0].value != took[1].value:
            raise RuntimeError(f"step {index}: {took[0].value} before, {took[1].value} after")
        found.append((took[0], took[1]))
    return found[1:]


def compare(bench: Bench, key: str, told: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One start of one workload: ratios by its name (of generation: by how it draws) and clock."""
    sizes = dict(SIZES[key])
    counted = {COUNTED[key]: (told.steps + 1) * sizes["batch_size"]} if key in COUNTED else {}
    files = bench.inputs({**sizes, **counted})
    ratios = {}
    for mode in told.modes.split(",") if key == "e" else ("",):
        spec = {**files, **sizes, **counted, "precision": told.precision, "mode": mode}
        with tempfile.TemporaryDirectory(prefix="finetooth-lockstep-") as folder:
            sides = [
                Side(checkout, spec, Path(folder) / name) for checkout, name in zip(told.checkouts, "ba", strict=True)
            ]
            try:
                taken = pairs(sides, told.steps)
            finally:
                for side in sides:
                    side.end()
        ratios[mode or pick(key)[0].name] = {
            "cpu": statistics.median(before.cpu_s / after.cpu_s for before, after in taken),
            "clock": statistics.median(before.wall_s / after.wall_s for before, after in taken),
        }
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--only", default="a,c,e,i", help="letters of workloads")
    parser.add_argument("--steps", type=int, default=12, help="pairs of steps in a start")
    parser.add_argument("--starts", type=int, default=3, help="how often both are started anew")
    parser.add_argument("--modes", default="greedy,sampled", help="of generation")
    parser.add_argument("--precision", default="auto", help="what the machine computes fast by default")
    told = parser.parse_args(arguments)
    python = told.checkouts[1] / ".venv/bin/python"
    bench = replace(bench_of(parse([])), pythons={"ours": python})
    for key in told.only.split(","):
        starts = [compare(bench, key, told) for _ in range(told.starts)]
        for name in starts[0]:
            for clock in ("cpu", "clock"):
                taken = [start[name][clock] for start in starts]
                shown = ", ".join(f"{ratio:.3f}" for ratio in taken)
                print(f"({key}) {name}, {clock}: {statistics.median(taken):.3f} ({shown})", flush=True)


if __name__ == "__main__":
    main()
