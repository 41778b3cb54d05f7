"""What is learned by reward alone: each task as the runs that lead to it, the last of which is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finetooth_basicenvironments.calculator import TOOL
from learning.tasks import polite

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
        scored: the held-out metric, a mean of scores, of an evaluator that shows every row; in place of a share.
        curve: the metric of a step that is drawn.
        goal: the least that the last measured run reaches after training, for the page; None without one.
    """

    name: str
    about: str
    runs: Callable[[Path, Path, int], Mapping[str, Recipe]]
    measured: Sequence[str]
    share: str = "exact_match"
    scored: str = ""
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


START = {"rows": 96, "calling": 4, "steps": 12}
"""Of the calculator's start: its rows, one in how many of which calls the tool, and its steps."""


def calculator(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    """First a few conversations, of which one in four calls the tool and the others answer at once, so that both are
    said; then the environment's reward alone."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = _products(START["rows"] + 480)
    started, asked = pairs[: START["rows"]], pairs[START["rows"] :]
    told = [_conversation(a, b, calls=i % START["calling"] == 0) for i, (a, b) in enumerate(started)]
    rows = [{"prompt": _asked(a, b), "answer": str(a * b)} for a, b in asked]
    for name, some in (("start", told), ("products", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    start = {
        "model": MODEL,
        "data": {"train": str(folder / "start.jsonl"), "renderer": "hermes"},
        "method": "sft",
        "adapter": dict(LORA),
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "schedule": {"name": "cosine", "warmup_ratio": 0.1},
        "train": {"max_steps": START["steps"], "batch_size": 8, "max_length": 512, "seed": seed},
        "evaluate": {"evaluators": []},
    }
    method = {
        "name": "grpo",
        "environment": {"name": "calculator", "column": "answer"},
        "num_generations": 8,
        "max_completion_length": 48,
        "max_turns": 2,
        "scale_rewards": "none",
    }
    given = {"train": str(folder / "products.jsonl"), "format": "task", "renderer": "hermes"}
    run = by_reward(given, method, {}, steps=14, batch=4, rate=5e-4, seed=seed)
    return {"start": start, "grpo": {**run, "model": str(folder / "start"), "evaluate": {"evaluators": []}}}


def _products(count: int) -> list[tuple[int, int]]:
    """Factors of products that are too large for a model of this size to know; no pair comes twice."""
    return list(dict.fromkeys((100 + 7 * i % 899, 11 + 13 * i % 89) for i in range(count)))


def _asked(a: int, b: int) -> str:
    return f"What is {a} * {b}? You may use the tool calculate."


def _conversation(a: int, b: int, *, calls: bool) -> Recipe:
    """A row that answers, with a call of the tool before it or at once."""
    call = {"name": TOOL.name, "arguments": {TOOL.argument: f"{a} * {b}"}}
    between: list[Recipe] = [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": TOOL.name, "content": str(a * b)},
    ]
    messages = [
        {"role": "user", "content": _asked(a, b)},
        *(between if calls else ()),
        {"role": "assistant", "content": f"{a * b}"},
    ]
    return {"messages": messages, "tools": [TOOL.schema()]}


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
    for name, some in (("train", lines[:400]), ("eval", lines[400:440])):
        (folder / f"{name}.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")
    rows = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "format": "task"}
    reward = {"name": "number_match"}
    method = {"name": "grpo", "rewards": [reward], "num_generations": 8, "max_completion_length": 128}
    judge = {"name": "exact_match", "max_tokens": 128, "reward": reward}
    return {"grpo": by_reward(rows, method, judge, steps=6, batch=4, rate=2e-4, seed=seed)}


def reasoning(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    """A task of reasoning-gym, judged by its own score; the share that is right is what is held against the answer."""
    task = {"name": "reasoning_gym", "dataset": "chain_sum", "parameters": {"max_terms": 2, "max_digits": 2}}
    task["parameters"] |= {"min_terms": 2, "min_digits": 1}
    rows = {
        "train": {**task, "split": "train", "count": 640, "seed": 1},
        "eval": {**task, "split": "eval", "count": 100, "seed": 1},
        "format": "task",
    }
    method = {"name": "grpo", "rewards": ["reasoning_gym"], "num_generations": 16, "max_completion_length": 12}
    judge = {"name": "exact_match", "column": "completion", "max_tokens": 12}
    return {"grpo": by_reward(rows, method, judge, steps=24, batch=4, rate=5e-4, seed=seed)}


ROUNDS = {"asked": 32, "held_out": 48, "batch": 8, "answer": 48}
"""Of self-rewarding: prompts of a round, prompts that are held out, pairs of a step, tokens of an answer."""


def self_rewarding(data: Path, folder: Path, seed: int) -> Mapping[str, Recipe]:
    """A reward model learns from one half of the rows; the policy judges its own answers to prompts of the other, and
    the reward model, which it never sees, those to prompts that neither has."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = polite(data)
    parts = {
        "pairs": train[::2],
        "asked": [{"prompt": row["prompt"]} for row in train[1::2]][: ROUNDS["asked"]],
        "held_out": [{"prompt": row["prompt"]} for row in held_out][: ROUNDS["held_out"]],
    }
    for name, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    judge = {
        "model": MODEL,
        "data": {"train": str(folder / "pairs.jsonl")},
        "method": "rm",
        "adapter": dict(LORA),
        "optimizer": {"name": "adamw", "learning_rate": 3e-4},
        "train": {"batch_size": 16, "epochs": 1, "max_length": 256, "excess_length": "drop", "seed": seed},
        "evaluate": {"evaluators": []},
    }
    asked = {"train": str(folder / "asked.jsonl"), "eval": str(folder / "held_out.jsonl"), "format": "task"}
    method = {"name": "self_rewarding", "num_generations": 4, "max_completion_length": ROUNDS["answer"]}
    held = {"name": "model", "path": str(folder / "judge")}
    all_of = {"max_tokens": ROUNDS["answer"], "samples": ROUNDS["held_out"]}
    evaluator = {"name": "exact_match", "reward": held, **all_of}
    run = by_reward(asked, method, evaluator, steps=0, batch=ROUNDS["batch"], rate=2e-4, seed=seed)
    run["train"] = {"epochs": 2, "batch_size": ROUNDS["batch"], "max_length": 512, "seed": seed}
    run["evaluate"]["every"] = ROUNDS["asked"] // ROUNDS["batch"]
    return {"judge": judge, "self_rewarding": run}


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
        OnlineTask(
            "reasoning",
            "Sums of two numbers as reasoning-gym asks and scores them (`chain_sum`): part of the reward for the right "
            "number among other words. Held out is what says the number and nothing else. No examples.",
            reasoning,
            ("grpo",),
        ),
        OnlineTask(
            "self-rewarding",
            "Answers to short instructions (polite_pref), which the model itself judges and prefers, in two rounds of "
            "32 prompts. Held out: 48 prompts, the greedy answers to which a reward model scores that was trained on "
            "other rows and that the policy never sees. Round 0 is the base. The curve is what the model thinks of "
            "its own answers, in points of 5.",
            self_rewarding,
            ("self_rewarding",),
            share="",
            scored="model",
            curve="judge/mean",
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
