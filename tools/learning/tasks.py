"""What is learned: each task with its rows, split by prompt, and how it is trained."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
HELD_OUT = 0.2
"""Share of the prompts that is held out."""
SEEDS = 5
"""Runs of each kind in the comparison of KTO's weights."""
RATIO, DESIRABLE = 10, 20
"""Undesirable answers for each desirable one, and how many of these, in that comparison."""


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes:
        name: of its folder and its result.
        method: as in a recipe.
        rows: from the data folder to rows that train and rows that are held out.
        about: what the rows are, in a few words.
        measured: `pairs` are scored one by one at the end, `steps` by the evaluator of that name.
        train: section of the recipe.
        learning_rate: of AdamW.
        part_of: the comparison whose runs this is one of.
    """

    name: str
    method: Mapping[str, Any]
    rows: Callable[[Path], tuple[Sequence[Row], Sequence[Row]]]
    about: str
    measured: Literal["pairs", "steps"] = "pairs"
    train: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 3e-4
    part_of: str = ""


def read(file: Path) -> list[Row]:
    """Rows of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def prompt_of(row: Row) -> str:
    """What the split goes by; of a transcript, what the person says first."""
    prompt = row.get("prompt") or str(row.get("chosen", "")).split("\n\nAssistant:")[0]
    return json.dumps(prompt, sort_keys=True)


def is_held_out(row: Row) -> bool:
    """All rows of a prompt are, or none."""
    digest = hashlib.sha256(prompt_of(row).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32 < HELD_OUT


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that train, and rows that are held out."""
    return [row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)]


def few(rows: Sequence[Row], most: int, seed: int = 0) -> list[Row]:
    """So many rows, drawn, in their order."""
    places = sorted(random.Random(seed).sample(range(len(rows)), min(most, len(rows))))
    return [rows[place] for place in places]


def shorter(data: Path) -> tuple[list[Row], list[Row]]:
    """An easy preference: of two answers to an instruction, the shorter one."""
    made = []
    for row in read(data / "preference/polite_pref.jsonl"):
        short, long = sorted((row["chosen"], row["rejected"]), key=len)
        if len(long) > len(short):
            made.append({"prompt": row["prompt"], "chosen": short, "rejected": long})
    return split(made)


def polite(data: Path) -> tuple[list[Row], list[Row]]:
    return split(read(data / "preference/polite_pref.jsonl"))


def ranked(data: Path) -> tuple[list[Row], list[Row]]:
    """Answers that people ranked; several pairs of a prompt."""
    return split(read(data / "preference/oasst_ranked.jsonl"))


def harmless(data: Path, most: int = 400) -> tuple[list[Row], list[Row]]:
    """Some of the training rows, none of which begins as a held-out row does."""
    test = read(data / "preference/hh_harmless_test_300.jsonl")
    known = {prompt_of(row) for row in test}
    rows = [row for row in read(data / "preference/hh_harmless_1500.jsonl") if prompt_of(row) not in known]
    return few(rows, most), test


def steps(data: Path) -> tuple[list[Row], list[Row]]:
    return split(read(data / "process/stepwise_1k.jsonl"))


SHORT = 420
"""Characters of the transcripts in the comparison of weights, so that ten runs are affordable."""


def unpaired(seed: int) -> Callable[[Path], tuple[list[Row], list[Row]]]:
    """One answer of each of 220 pairs: the chosen one of 20, the rejected one of 200; held out are whole pairs."""

    def rows(data: Path) -> tuple[list[Row], list[Row]]:
        train, test = harmless(data, 1500)
        train, test = ([row for row in of if longest(row) <= SHORT] for of in (train, test))
        taken = random.Random(seed).sample(train, DESIRABLE * (1 + RATIO))
        made = [answer(row, i < DESIRABLE) for i, row in enumerate(taken)]
        random.Random(seed).shuffle(made)
        return made, test

    return rows


def longest(row: Row) -> int:
    return max(len(row["chosen"]), len(row["rejected"]))


def answer(row: Row, desirable: bool) -> Row:
    """A transcript of two people as the messages of a prompt, its last answer, and a label."""
    text = row["chosen" if desirable else "rejected"]
    parts = text.split("\n\nHuman: ")[1:]
    turns = []
    for part in parts:
        asked, _, said = part.partition("\n\nAssistant:")
        turns += [{"role": "user", "content": asked.strip()}, {"role": "assistant", "content": said.strip()}]
    return {"prompt": turns[:-1], "completion": turns[-1:], "label": desirable}


RM: Mapping[str, Any] = {"name": "rm", "unusable": "drop"}
DPO: Mapping[str, Any] = {"name": "dpo", "beta": 0.1}


def _pairs() -> list[Task]:
    """A reward model and dpo on each file of pairs."""
    files: dict[str, tuple[Callable[[Path], tuple[list[Row], list[Row]]], str, dict[str, Any]]] = {
        "shorter": (shorter, "the shorter of two answers is the better one", {"max_length": 128, "epochs": 1}),
        "polite": (polite, "polite_pref: the polite answer", {"max_length": 128, "epochs": 1}),
        "ranked": (ranked, "oasst_ranked: what people ranked higher", {"max_length": 640, "epochs": 1}),
        "harmless": (harmless, "hh_harmless: 400 pairs, held out are the 300 of its test", {"max_length": 384}),
    }
    found = []
    for name, (rows, about, train) in files.items():
        found.append(Task(f"{name}-rm", RM, rows, about, train=train))
        found.append(Task(f"{name}-dpo", DPO, rows, about, train=train))
    return found


def _kto() -> list[Task]:
    """Ten desirable answers for each undesirable one, weighted and not, from every seed."""
    found = []
    for seed in range(SEEDS):
        for kind, weight in (("weighted", float(RATIO)), ("unweighted", 1.0)):
            method = {"name": "kto", "beta": 0.1, "desirable_weight": weight}
            about = f"hh_harmless unpaired, 1 desirable answer to {RATIO} undesirable ones"
            train = {"max_length": 256, "seed": seed}
            found.append(Task(f"kto-{kind}-{seed}", method, unpaired(seed), about, train=train, part_of="kto"))
    return found


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in [
        *_pairs(),
        Task(
            "steps-prm", {"name": "prm", "unusable": "drop"}, steps, "stepwise_1k: is this step right?", "steps",
            {"max_length": 384, "epochs": 1},
        ),
        *_kto(),
    ]
}  # fmt: skip
"""All of them, by name, the easy ones first."""


def pick(names: Sequence[str]) -> list[Task]:
    """Tasks by name, or by how their names begin (`kto`, `harmless`); all for none.

    Raises:
        ValueError: no task begins so.
    """
    found: dict[str, Task] = {}
    for name in names or [""]:
        of_name = {task.name: task for task in TASKS.values() if task.name.startswith(name)}
        if not of_name:
            raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
        found |= of_name
    return list(found.values())
