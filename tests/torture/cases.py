"""Recipes whose every pair of choices occurs: what a resumed run must carry on exactly."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "red", "blue", "green", "dogs", "run", "fast", "slow")

CHOICES: Mapping[str, tuple[str, ...]] = {
    "adapter": ("lora", "full"),
    "precision": ("bf16", "fp32", "fp16"),
    "dropout": ("off", "on"),
    "micro": ("one", "several"),
    "data": ("shuffled", "in order", "mixed", "streaming"),
    "save": ("middle", "boundary"),
    "schedule": (),
    "optimizer": (),
}
"""Choices by what is chosen; schedules and optimizers are those that are installed."""


@dataclass(frozen=True)
class Case:
    """One combination."""

    choices: Mapping[str, str]
    ranks = 1

    @property
    def name(self) -> str:
        return "-".join(self.choices[key].replace(" ", "_") for key in CHOICES)

    def recipe(self, folder: Path, model: Path, output: Path) -> dict[str, Any]:
        """The recipe of the case.

        Args:
            folder: with the data that `write_data` wrote.
        """
        c = self.choices
        streaming = c["data"] == "streaming"
        adapter: dict[str, Any] = {"name": c["adapter"]}
        if c["adapter"] == "lora":
            adapter |= {"rank": 4, "dropout": 0.1 if c["dropout"] == "on" else 0.0}
        rows = str(folder / "train.jsonl")
        train: Any = [{"name": "jsonl", "path": rows, "weight": 2.0}, str(folder / "more.jsonl")] \
            if c["data"] == "mixed" else rows  # fmt: skip
        data: dict[str, Any] = {"train": train, "eval": str(folder / "eval.jsonl"), "renderer": "chatml"}
        method: Any = "sft"
        if streaming:
            data = {"train": str(folder / "text.jsonl")}
            method = {"name": "pretrain", "streaming": True}
        steps = 9
        optimizer = c["optimizer"]
        return {
            "model": str(model),
            "data": data,
            "method": method,
            "adapter": adapter,
            "optimizer": {"name": optimizer, "learning_rate": 1e-3},
            "schedule": c["schedule"],
            "train": {
                "batch_size": 4,
                "max_length": 64,
                "precision": c["precision"],
                "micro_batch_tokens": 64 if c["micro"] == "several" else 4096,
                "shuffle": c["data"] != "in order",
                "max_steps": steps,
                "epochs": 10,
            },
            "evaluate": {"every": 4, **({} if streaming else {"evaluators": [
                "loss", {"name": "exact_match", "max_tokens": 6, "samples": 2}]})},
            "checkpoint": {"every": 2 if c["save"] == "middle" else "epoch", "keep_last": 3},
            "trackers": ["jsonl"],
            "output": str(output),
        }  # fmt: skip


def pairwise(seed: int, **choices: tuple[str, ...]) -> list[Case]:
    """Few combinations in which every pair of choices occurs: greedily, the best of some drawn ones."""
    keys = list(choices)
    wanted = {((a, x), (b, y)) for a, b in itertools.combinations(keys, 2) for x in choices[a] for y in choices[b]}
    draw, cases = random.Random(seed), []
    while wanted:
        (a, x), (b, y) = min(wanted)
        best: dict[str, str] = {}
        most = -1
        for _ in range(60):
            drawn = {key: draw.choice(values) for key, values in choices.items()} | {a: x, b: y}
            covered = len(wanted & pairs(drawn))
            if covered > most:
                best, most = drawn, covered
        wanted -= pairs(best)
        cases.append(Case({key: best[key] for key in keys}))
    return cases


def pairs(choices: Mapping[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Every pair of choices in a combination."""
    return set(itertools.combinations(choices.items(), 2))


def write_data(folder: Path) -> None:
    """Rows for all cases, from a seed."""
    draw = random.Random(0)

    def said(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    for name, count in (("train", 20), ("more", 10), ("eval", 3)):
        rows = [{"messages": [{"role": "user", "content": said(5)}, {"role": "assistant", "content": said(4)}]}
                for _ in range(count)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": said(draw.randint(5, 60))} for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
