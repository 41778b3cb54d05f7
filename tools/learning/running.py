"""One task: its run, and what it reaches on held-out rows."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learning.figures import of_pairs
from learning.tasks import Task, prompt_of

FEW = 4
"""Steps that an estimate takes."""


def recipe(task: Task, data: Path, folder: Path) -> dict[str, Any]:
    """Write the rows of a task, and say how to train on them.

    Args:
        folder: gets the rows and the run.
    """
    train, held_out = task.rows(data)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": "smollm2-135m",
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")},
        "method": dict(task.method),
        "adapter": {"name": "lora", "rank": 16},
        "optimizer": {"name": "adamw", "learning_rate": task.learning_rate},
        "train": {"batch_size": 16, "excess_length": "drop", "epochs": 1, **task.train},
        "evaluate": {"before": False, "evaluators": [{"name": "steps"}] if task.measured == "steps" else []},
        "trackers": ["jsonl"],
        "output": str(folder / "run"),
    }


def fingerprint(task: Task, overrides: Sequence[str]) -> str:
    """Of everything that a result depends on but the code and the data."""
    told = [task.name, dict(task.method), dict(task.train), task.learning_rate, task.about, list(overrides)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def learn(task: Task, data: Path, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, measure, and say what was found."""
    import finetooth

    if folder.exists():
        shutil.rmtree(folder)  # what a run that was ended left
    session = finetooth.session(recipe(task, data, folder), *overrides)
    began = time.monotonic()
    session.run()
    trained = time.monotonic() - began
    found: dict[str, Any] = {
        "task": task.name,
        "about": task.about,
        "part_of": task.part_of,
        "fingerprint": fingerprint(task, overrides),
        "method": dict(task.method),
        "train": dict(session.recipe.as_dict()["train"]),
        "learning_rate": session.recipe.as_dict()["optimizer"]["learning_rate"],
        "rows": {report.split: report.used for report in session.reports},
        "train_s": round(trained, 1),
        "curve": curve(folder / "run/metrics.jsonl"),
    }
    if task.measured == "steps":
        last = session.evaluations[-1]
        return {**found, "rows_held_out": last.rows, "reached": dict(last.metrics)}
    began = time.monotonic()
    pairs = held_out_pairs(session, task, data)
    found["reached"] = of_pairs(**pairs, longer_is_better=longer_is_better(task, data))
    if task.method["name"] == "rm":  # it counts both answers of a pair
        found["rows"] = {split: used // 2 for split, used in found["rows"].items()}
    return {**found, "score_s": round(time.monotonic() - began, 1), "held_out": pairs}


def curve(file: Path) -> list[list[float]]:
    """`[step, loss, accuracy, margin]` of every step, as the tracker wrote them.

    What the method does not say is left out.
    """
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = []
    for line in (line for line in lines if line.get("event") == "step"):
        metrics = line.get("metrics", {})
        said = [metrics.get(f"rewards/{name}") for name in ("accuracies", "margins")]
        found.append([line["step"], round(line["loss"], 4), *(round(v, 4) for v in said if v is not None)])
    return found


def held_out_pairs(session: Any, task: Task, data: Path) -> dict[str, Any]:
    """Of each held-out pair: by how much the chosen answer is ahead and how much longer it is, and the number of its
    prompt. A pair that is too long is left out.

    Returns:
        `margins`, `lengths` and `prompts`.
    """
    scalar = task.method["name"] == "rm"
    datums = _scalar_data(session) if scalar else _answer_data(session)
    rewards = _scores(session, datums) if scalar else _log_ratios(session, datums)
    lengths = np.array([len(datum) if scalar else int(datum.mask.sum()) for datum in datums])
    rows = task.rows(data)[1]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt_of(row) for row in rows))}
    places = [_line(datum.id) - 1 for datum in datums[0::2]]
    return {
        "margins": [round(float(x), 4) for x in rewards[0::2] - rewards[1::2]],
        "lengths": [int(x) for x in lengths[0::2] - lengths[1::2]],
        "prompts": [numbers[prompt_of(rows[place])] for place in places],
    }


def _line(id_: str) -> int:
    """The line that a datum was made from."""
    found = re.search(r"\.jsonl:(\d+)", id_)
    if found is None:
        raise ValueError(f"{id_!r} names no line")
    return int(found[1])


def _scalar_data(session: Any) -> list[Any]:
    from finetooth_hooks.data.preparation import Rendering

    options = {
        "kind": "pairs", "unusable": "drop", "margin": False, "max_length": session.context.train.max_length,
        "excess_length": "drop",
    }  # fmt: skip
    return list(session.context.prepare("eval", Rendering("finetooth_reward.rendering:build", options), None).data)


def _answer_data(session: Any) -> list[Any]:
    from finetooth_hooks.data.preparation import Limit, Rendering

    rendering = Rendering("finetooth_preference.rendering:pairs", {"bad_rows": "drop", "margins": False})
    return list(session.context.prepare("eval", rendering, Limit.of(session.context.train)).data)


def _scores(session: Any, datums: Sequence[Any]) -> np.ndarray:
    found = session.engine.forward(datums, returns=("scores",), train=False).outputs
    return np.array([float(each["scores"]) for each in found])


def _log_ratios(session: Any, datums: Sequence[Any]) -> np.ndarray:
    """Log-probability of each answer above the reference's: the reward but for beta."""
    policy, reference = (session.engine.logprobs(datums, role=role) for role in ("policy", "reference"))
    return np.array([float((a - b).sum(dtype=np.float64)) for a, b in zip(policy, reference, strict=True)])


def longer_is_better(task: Task, data: Path) -> bool:
    """What the lengths of the training rows say; where these are no pairs, what those of the held-out rows say."""
    rows = [row for row in task.rows(data)[0] if "chosen" in row] or task.rows(data)[1]
    ahead = sum(np.sign(_size(row["chosen"]) - _size(row["rejected"])) for row in rows)
    return bool(ahead > 0)


def _size(side: Any) -> int:
    return len(side) if isinstance(side, str) else sum(len(message["content"]) for message in side)


def estimate(task: Task, data: Path, folder: Path, overrides: Sequence[str]) -> float:
    """Seconds that a task will take, from a few steps of it. A pass without gradients counts a third of one with them,
    or half where the step has a pass of the reference's too."""
    import finetooth

    if folder.exists():
        shutil.rmtree(folder)
    given = recipe(task, data, folder)
    given["evaluate"] = {"before": False, "evaluators": []}
    total = finetooth.session(given, *overrides).job.prepared.total_steps
    finetooth.session(given, *overrides, f"train.max_steps={min(FEW, total)}").run()
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    warm = [line["seconds"] for line in lines if line.get("event") == "step"][1:]
    shutil.rmtree(folder)
    train, held_out = (len(rows) for rows in task.rows(data))
    sides = 2 if task.part_of else 1  # held out are pairs, where single answers train
    part = 1 / 3 if task.method["name"] in ("rm", "prm") else 1 / 2
    return total * statistics.median(warm) * (1 + sides * part * held_out / train / task.train.get("epochs", 1))


def estimate_text(seconds: Mapping[str, float]) -> str:
    """As lines, with the sum."""
    lines = [f"{name:20} {value / 60:6.1f} min" for name, value in seconds.items()]
    return "\n".join([*lines, f"{'all':20} {sum(seconds.values()) / 60:6.1f} min"])
