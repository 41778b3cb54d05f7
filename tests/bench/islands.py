"""Measure how well islands learn, and write docs/benchmarks/islands.md.

    python tests/bench/islands.py TEXT [--folder DIR] [--page]

A small model of bytes first learns a text in one process, as the paper begins from a pretrained model
(arXiv:2311.08105, section 3.1). From there it learns on in each way, with equal tokens. Each way takes the best of
`RATES` by its first seed. A run that lies in the folder is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/bits"))
import tiny  # noqa: E402

ISLANDS, ROWS, LENGTH, STEPS, BEFORE = 4, 16, 64, 400, 500
RATES, SEEDS = (4e-3, 8e-3), (1, 2)
PLAIN = {"outer_lr": 1.0, "outer_momentum": 0.0}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "`ddp`": {},
    "`inner_steps: 5`, means of weights": {"inner_steps": 5, **PLAIN},
    "`inner_steps: 20`, means of weights": {"inner_steps": 20, **PLAIN},
    "`inner_steps: 20`, outer defaults": {"inner_steps": 20},
}
"""Options of `diloco`. Means of weights are an outer rate of 1 without momentum."""


@dataclass(frozen=True)
class Learned:
    """What a way came to: its best rate, the loss of each seed, and bytes that an island gave."""

    rate: float
    losses: tuple[float, ...]
    sent: float


def main() -> int:
    """Run what has not been run, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / ".islands")
    parser.add_argument("--page", action="store_true", help="write docs/benchmarks/islands.md")
    given = parser.parse_args()
    folder: Path = given.folder.absolute()
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        tiny.HIDDEN, tiny.BETWEEN, tiny.LAYERS = 64, 128, 4
        tiny.write_model(folder / "model", 16)
    text = given.text.read_text(encoding="utf-8")
    (folder / "train.txt").write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    (folder / "eval.txt").write_text(text[len(text) * 9 // 10 :][:16_000], encoding="utf-8")
    begun = run(folder, "before", "model", {}, RATES[0], 0, BEFORE)
    start = str(begun / "artifact")
    made = {name: learned(folder, f"way-{at}", start, way) for at, (name, way) in enumerate(WAYS.items())}
    written = page(made, loss(begun), given.text.name)
    print(written)
    if given.page:
        (ROOT / "docs/benchmarks/islands.md").write_text(written, encoding="utf-8")
    return 0


def learned(folder: Path, name: str, start: str, way: Mapping[str, Any]) -> Learned:
    """Tries rates with the first seed, and takes the best with the others."""
    tried = {rate: run(folder, f"{name}-{rate:g}", start, way, rate, SEEDS[0], STEPS) for rate in RATES}
    rate = min(tried, key=lambda tried_rate: loss(tried[tried_rate]))
    more = [run(folder, f"{name}-{rate:g}-{seed}", start, way, rate, seed, STEPS) for seed in SEEDS[1:]]
    runs = [tried[rate], *more]
    plan = {**recipe(start, way, rate, SEEDS[0], STEPS), "output": "other"}
    (folder / "simulated.json").write_text(json.dumps(plan), encoding="utf-8")
    said = ft(folder, "simulate", "simulated.json", "--link", "100Mbit", "--islands", str(ISLANDS), "--json")
    simulated = json.loads(said)
    return Learned(rate, tuple(map(loss, runs)), simulated["sent" if way else "ddp"]["given"])


def recipe(start: str, way: Mapping[str, Any], rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Of `ddp`, one process takes the steps: four come to the same, which other tests hold."""
    return {
        "model": start, "method": "pretrain", "adapter": "full", "data": {"train": "train.txt", "eval": "eval.txt"},
        "optimizer": {"name": "adamw", "learning_rate": rate}, "schedule": {"name": "cosine", "warmup_ratio": 0.05},
        "train": {
            "max_steps": steps, "epochs": 10, "batch_size": ROWS, "max_length": LENGTH, "precision": "fp32",
            "micro_batch_tokens": ROWS * LENGTH, "seed": seed,
        },
        "trackers": ["jsonl"], "scale": {"devices": ISLANDS, "strategy": {"name": "diloco", **way}} if way else {},
    }  # fmt: skip


def run(folder: Path, name: str, start: str, way: Mapping[str, Any], rate: float, seed: int, steps: int) -> Path:
    """The folder of a run, which is made if it is not there."""
    made = folder / name
    if not (made / "artifact").exists():
        given = {**recipe(start, way, rate, seed, steps), "output": str(made)}
        (folder / f"{name}.json").write_text(json.dumps(given), encoding="utf-8")
        ft(folder, "run", f"{name}.json")
    return made


def ft(folder: Path, *words: str) -> str:
    """What the command prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "finetooth", *words]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def loss(made: Path) -> float:
    """Of rows that did not train, at the end of a run."""
    lines = map(json.loads, (made / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [float(line["metrics"]["loss"]) for line in lines if line["event"] == "evaluation"][-1]


def page(made: Mapping[str, Learned], before: float, text: str) -> str:
    """docs/benchmarks/islands.md."""
    ddp = made["`ddp`"]
    rows = []
    for name, way in made.items():
        ratios = [f"{100 * (own / of_ddp - 1):+.1f} %" for own, of_ddp in zip(way.losses, ddp.losses, strict=True)]
        cells = [name, f"{way.rate:g}", ", ".join(f"{own:.4f}" for own in way.losses), ", ".join(ratios)]
        rows.append(f"| {' | '.join(cells)} | {way.sent / 1e6:.1f} MB |")
    rates, seeds = (" and ".join(f"{value:g}" for value in values) for values in (RATES, SEEDS))
    told = (
        f"Written by `tests/bench/islands.py {text} --page`, {time.strftime('%Y-%m-%d')}, {platform.machine()}. A "
        f"Llama of four layers, 64 wide, with a token for each byte, first learns {text} for {BEFORE} steps in one "
        f"process, to a loss of {before:.4f}. From there, each way takes {STEPS} steps more with AdamW and a cosine, "
        f"{ROWS} rows of {LENGTH} bytes a step, so all see the same {STEPS * ROWS * LENGTH:,} tokens in the same "
        f"order. {ISLANDS} islands share the rows of a step; of `ddp`, one process takes the steps. Learning rates "
        f"are the better of {rates} for each way, by the first seed. The loss is of a part of the text that did not "
        f"train, in nats a byte, for seeds {seeds} of the order of rows. What a rank sends is as `ft simulate` says. "
        "Means of weights are `outer_lr: 1` and `outer_momentum: 0`."
    )
    head = ["| way | learning rate | loss | against `ddp` | sent by a rank |", "|---|---|---|---|---|"]
    return "\n".join(["# How well islands learn", "", textwrap.fill(told, 120), "", *head, *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
