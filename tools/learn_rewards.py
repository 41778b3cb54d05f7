"""Reward models on real data, held out by prompt: what they reach, with intervals, beside what length alone would.

    python tools/learn_rewards.py SHARED OUTPUT [TASK ...] [-- KEY=VALUE ...]

SHARED holds `data/preference` and `data/process`. Every task is a run of its own in OUTPUT/TASK, and
OUTPUT/results.json has the last held-out metrics of each. Settings behind `--` go to every run:
`-- train.max_steps=100`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HELD_OUT = 0.2
"""Share of the prompts."""


def rows_of(file: Path) -> list[Row]:
    """Rows of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def held_out(row: Row) -> bool:
    """Whether a row is held out: all rows of a prompt are, or none."""
    prompt = row.get("prompt") or str(row.get("chosen", "")).split("\n\nAssistant:")[0]
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32 < HELD_OUT


def shorter(shared: Path) -> list[Row]:
    """An easy preference: of two answers to an instruction, the shorter one."""
    made = []
    for row in rows_of(shared / "preference/polite_pref.jsonl"):
        short, long = sorted((row["chosen"], row["rejected"]), key=len)
        if len(long) > len(short):
            made.append({"prompt": row["prompt"], "chosen": short, "rejected": long})
    return made


def plain(name: str) -> Callable[[Path], list[Row]]:
    """The rows of a file as they are."""
    return lambda shared: rows_of(shared / name)


TASKS: Mapping[str, tuple[str, Callable[[Path], list[Row]], Mapping[str, Any]]] = {
    "shorter": ("rm", shorter, {"max_length": 256, "epochs": 2}),
    "polite": ("rm", plain("preference/polite_pref.jsonl"), {"max_length": 256, "epochs": 2}),
    "oasst": ("rm", plain("preference/oasst_ranked.jsonl"), {"max_length": 1024, "epochs": 2}),
    "harmless": ("rm", plain("preference/hh_harmless_1500.jsonl"), {"max_length": 512, "epochs": 2}),
    "steps": ("prm", plain("process/stepwise_1k.jsonl"), {"max_length": 768, "epochs": 3}),
}
"""Method, rows, and the `train` section of each task."""


def lines(rows: list[Row]) -> Iterator[str]:
    """As JSON lines."""
    return (json.dumps(row) + "\n" for row in rows)


def recipe(task: str, shared: Path, folder: Path) -> dict[str, Any]:
    """Write the rows of a task, split by prompt, and say how to train on them."""
    method, read, train = TASKS[task]
    rows = read(shared / "data")
    folder.mkdir(parents=True, exist_ok=True)
    for split, kept in (("train", False), ("eval", True)):
        chosen = [row for row in rows if held_out(row) is kept]
        (folder / f"{task}-{split}.jsonl").write_text("".join(lines(chosen)), encoding="utf-8")
    data: dict[str, Any] = {split: str(folder / f"{task}-{split}.jsonl") for split in ("train", "eval")}
    if task == "harmless":
        data["eval"] = str(shared / "data/preference/hh_harmless_test_300.jsonl")
    return {
        "model": "smollm2-135m",
        "data": data,
        "method": {"name": method, "unusable": "drop"},
        "adapter": {"name": "lora", "rank": 16},
        "optimizer": {"name": "adamw", "learning_rate": 3e-4},
        "train": {"batch_size": 16, "excess_length": "drop", **train},
        "trackers": ["jsonl"],
        "output": str(folder / task),
    }


def main() -> None:
    """Run the tasks that are named, or all."""
    import finetooth

    given, _, overrides = " ".join(sys.argv[1:]).partition(" -- ")
    shared, output, *tasks = given.split()
    found: dict[str, Any] = {}
    for task in tasks or TASKS:
        session = finetooth.session(recipe(task, Path(shared), Path(output)), overrides.split())
        session.run()
        last = session.evaluations[-1]
        found[task] = {"rows": last.rows, **last.metrics, "baselines": dict(last.baselines)}
        print(task, json.dumps(found[task]), flush=True)
        (Path(output) / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
