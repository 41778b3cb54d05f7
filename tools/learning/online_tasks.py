"""What is learned by reward alone: each task as the runs that lead to it, the last of which is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Recipe = dict[str, Any]
MODEL = "smollm2-135m"
LORA: Mapping[str, Any] = {"name": "lora", "rank": 16}


@dataclass(frozen=True)
class OnlineTask:
    """One thing to learn.

    Attributes:
        name: of its folder and its results.
        about: what is asked, and what the reward says, in a sentence or two.
        runs: from the data folder, a folder for the runs and a seed to recipes by name. Each is run in this order into
            a folder of its name, so that a later one can begin from an earlier one.
        measured: names of the runs whose held-out figures and curves are kept; each is a line of the page.
        share: the held-out metric, a share of the rows, which an evaluator calls by its reward; empty for the curve
            alone.
        curve: the metric of a step that is drawn.
        goal: the least that the last measured run reaches after training, for the page; None without one.
    """

    name: str
    about: str
    runs: Callable[[Path, Path, int], Mapping[str, Recipe]]
    measured: Sequence[str]
    share: str = "exact_match"
    curve: str = "reward"
    goal: float | None = None


def published(name: str, folder: Path, seed: int) -> Recipe:
    """A recipe of docs/recipes with another seed, its model's run in `folder`."""
    found: Recipe = yaml.safe_load((ROOT / "docs/recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    if str(found["model"]).startswith("runs/"):
        found["model"] = str(folder / Path(found["model"]).name)
    found["train"] = {**found["train"], "seed": seed}
    found.pop("output", None)
    return found


def questions(task: str, count: int, held_out: int) -> Recipe:
    """Rows of the source `tasks`, as prompts with the expected answer beside them."""
    source = {"name": "tasks", "task": task, "seed": 1}
    return {
        "train": {**source, "split": "train", "count": count},
        "eval": {**source, "split": "eval", "count": held_out},
        "format": "task",
    }


def by_reward(data: Recipe, method: Recipe, judge: Recipe, *, steps: int, batch: int, rate: float, seed: int) -> Recipe:
    """A run of a method that learns from rollouts.

    Args:
        judge: the evaluator before and after.
    """
    return {
        "model": MODEL,
        "data": data,
        "method": method,
        "adapter": dict(LORA),
        "optimizer": {"name": "adamw", "learning_rate": rate},
        "schedule": {"name": "constant"},
        "train": {"max_steps": steps, "batch_size": batch, "max_length": 512, "seed": seed},
        "evaluate": {"evaluators": [judge]},
    }


def family(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    start = published("grpo-family-start", folder, seed)
    return {"family-start": start, "grpo": published("grpo-family", folder, seed)}


NUMBER = {"name": "regex_match", "pattern": r"\s*-?\d+\s*", "whole": True}
"""An answer that is a number and nothing else, right or wrong."""


def number_format(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    method = {"name": "grpo", "rewards": [NUMBER], "num_generations": 16, "max_completion_length": 8}
    judge = {"name": "exact_match", "column": "completion", "max_tokens": 8, "reward": NUMBER}
    return {
        "grpo": by_reward(questions("arithmetic", 640, 100), method, judge, steps=12, batch=4, rate=1e-3, seed=seed)
    }


def calculator(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    """First a few conversations in which the tool is called, for the markup; then the environment's reward alone."""
    rows = _sums(folder, 640)
    method = {
        "name": "grpo",
        "environment": {"name": "calculator", "column": "answer"},
        "num_generations": 8,
        "max_completion_length": 48,
        "max_turns": 2,
        "scale_rewards": "none",
        "beta": 0.05,
    }
    given = {"train": str(rows), "format": "task", "renderer": "hermes"}
    run = by_reward(given, method, {}, steps=40, batch=8, rate=3e-4, seed=seed)
    return {"grpo": {**run, "evaluate": {"evaluators": []}}}


def _sums(folder: Path, count: int) -> Path:
    """Products too large for a model of this size to know, with their values."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sums.jsonl"
    pairs = [(100 + 7 * i % 899, 11 + 13 * i % 89) for i in range(count)]
    asked = "What is {} * {}? You may use the tool calculate."
    rows = [{"prompt": f"{asked.format(a, b)}", "answer": str(a * b)} for a, b in dict.fromkeys(pairs)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


TOKENS = {"steps": 30, "batch": 16}
"""Of distillation: so many prompts a step and steps, for both students."""


def distillation(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    """A teacher by supervision; then two students of it from the base, on the same prompts: one on its own answers,
    which the teacher judges token by token, and one on right answers, by sft."""
    rows = {"name": "tasks", "task": "family", "seed": 2, "count": 480, "split": "train"}
    held_out = {"name": "tasks", "task": "family", "seed": 1, "count": 100, "split": "eval"}
    judge = {"name": "exact_match", "column": "completion", "max_tokens": 8}
    teacher = published("quickstart", folder, seed)
    method = {"name": "opd", "teacher": str(folder / "teacher"), "num_generations": 4, "max_completion_length": 8}
    steps, batch = TOKENS["steps"], TOKENS["batch"]
    asked = {"train": rows, "eval": held_out, "format": "task"}
    student = by_reward(asked, method, judge, steps=steps, batch=batch, rate=1e-3, seed=seed)
    told = by_reward(
        {"train": rows, "eval": held_out}, {"name": "sft"}, judge, steps=steps, batch=batch, rate=1e-3, seed=seed
    )
    return {"teacher": teacher, "opd": student, "sft": told}


def gsm8k(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (data / "rl/gsm8k_prompts_500.jsonl").read_text(encoding="utf-8").splitlines()
    for name, some in (("train", lines[:400]), ("eval", lines[400:460])):
        (folder / f"{name}.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")
    rows = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "format": "task"}
    reward = {"name": "number_match"}
    method = {"name": "grpo", "rewards": [reward], "num_generations": 8, "max_completion_length": 128}
    judge = {"name": "exact_match", "max_tokens": 128, "reward": reward}
    return {"grpo": by_reward(rows, method, judge, steps=10, batch=4, rate=2e-4, seed=seed)}


TASKS: Mapping[str, OnlineTask] = {
    task.name: task
    for task in (
        OnlineTask(
            "family",
            "Relationships in a family (docs/recipes/grpo-family-start.yaml, then grpo-family.yaml): a few examples, "
            "then only whether an answer is right.",
            family,
            ("family-start", "grpo"),
            goal=0.6,
        ),
        OnlineTask(
            "format",
            "Sums, asked for a number: 1 for an answer that is a number and nothing else, right or wrong. No examples.",
            number_format,
            ("grpo",),
            share="regex_match",
            goal=0.95,
        ),
        OnlineTask(
            "calculator",
            "Products of three digits by two with a tool that calculates, over two turns: 1 for the right number. The "
            "curve is how many turns the policy takes: 1 is an answer at once, 2 a call of the tool and an answer.",
            calculator,
            ("grpo",),
            share="",
            curve="environment/turns",
        ),
        OnlineTask(
            "distillation",
            "Family relationships from the base, by what a tuned teacher thinks of the student's own answers (opd), "
            "beside supervision on the right answers to the same prompts in as many steps (sft).",
            distillation,
            ("opd", "sft"),
        ),
        OnlineTask(
            "gsm8k",
            "Word problems (GSM8K): 1 for the right last number. No examples.",
            gsm8k,
            ("grpo",),
            share="number_match",
        ),
    )
}


def pick(names: Sequence[str]) -> list[OnlineTask]:
    """Tasks by name; all for none.

    Raises:
        ValueError: there is no such task.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return [TASKS[name] for name in names or TASKS]
