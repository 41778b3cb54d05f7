"""Every cell of docs/strategies.md: what it says is what runs over two or four processes do."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from strategy_table import COLUMNS, ELSEWHERE, LORA, PAGE, RESUMED, WAYS, page, scale_of
from test_two_ranks import RECIPE, TEN_STEPS, check_alike, check_weights, folder, ft, steps  # noqa: F401 - folder is a fixture

TRAIN: dict[str, Any] = TEN_STEPS["train"]
SCORE = "def score(completion_ids, **columns):\n    return [float(sum(ids) % 7) for ids in completion_ids]\n"


def test_the_page_is_that_of_the_cases() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/scale/strategy_table.py"


def cells() -> list[Any]:
    return [
        pytest.param(way, ranks, column, id=f"{way} over {ranks}: {column}", marks=marks_of(way))
        for way in WAYS
        for ranks in WAYS[way].ranks
        for column in COLUMNS
        if column not in ELSEWHERE.get(way, ())
    ]


def marks_of(*names: str) -> list[Any]:
    ways = [WAYS[way] for way in (name.partition(" over ")[0] for name in names) if way in WAYS]
    lacks = any(way.needs_deepspeed for way in ways) and importlib.util.find_spec("deepspeed") is None
    return [pytest.mark.slow, pytest.mark.skipif(lacks, reason="needs deepspeed: make scale-test")]


def run(folder: Path, name: str, recipe: dict[str, Any]) -> tuple[Path, Any]:  # noqa: F811
    """Runs a recipe, if it has not ended before; returns its folder and what the command did."""
    name = name.translate(str.maketrans({" ": "-", ",": "", ":": ""}))
    if (folder / name / "artifact").exists():
        return folder / name, None
    (folder / "rewards.py").write_text(SCORE, encoding="utf-8")
    (folder / f"{name}.yaml").write_text(json.dumps({**recipe, "output": name}), encoding="utf-8")
    return folder / name, ft(folder, "run", f"{name}.yaml")


@pytest.mark.parametrize(("way", "ranks", "column"), cells())
def test_a_cell_says_what_the_run_does(folder: Path, way: str, ranks: int, column: str) -> None:  # noqa: F811
    tried = WAYS[way]
    recipe = {**RECIPE, "adapter": LORA, **COLUMNS[column][1], **tried.changes}
    recipe["train"] = {**TRAIN, **tried.changes.get("train", {})}
    many, done = run(folder, f"{column}-{way}-{ranks}", {**recipe, "scale": {"devices": ranks, **tried.scale}})
    assert tried.needs_deepspeed or "Warning" not in done.stderr, done.stderr
    if column in tried.refused:
        assert done.returncode == 2 and tried.refused[column] in done.stderr, done.stdout + done.stderr
        assert not (many / "metrics.jsonl").exists() or not steps(many)
        return
    assert done is None or done.returncode == 0, done.stdout + done.stderr
    one, done = run(folder, f"{column}-of-one-{'sgd' if tried.changes else 'adamw'}", recipe)
    assert done is None or done.returncode == 0, done.stdout + done.stderr
    assert len(steps(many)) == TRAIN["max_steps"] and any(step["grad_norm"] for step in steps(one))
    if tried.weights_alone:
        check_weights(one, many, 2e-5)
    else:
        check_alike(one, many)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(*pair, marks=marks_of(*pair))
        for pair in ((before, after) for before, others in RESUMED.items() for after in others)
    ],
)
def test_another_strategy_resumes_a_run(folder: Path, before: str, after: str) -> None:  # noqa: F811
    dropped = any(name in WAYS and "dropout" in WAYS[name].refused for name in (before, after))
    recipe = {**RECIPE, "schedule": "constant", "adapter": LORA if dropped else RECIPE["adapter"]}
    recipe["train"] = {**RECIPE["train"], "max_steps": 4, "epochs": 2}
    whole, done = run(folder, f"unbroken-{dropped}", recipe)
    assert done is None or done.returncode == 0, done.stdout + done.stderr
    short = {
        **recipe,
        "train": {**recipe["train"], "max_steps": 2},
        "checkpoint": {"every": 1},
        "scale": scale_of(before),
    }
    begun, done = run(folder, f"{before}-then-{after}", short)
    assert done.returncode == 0, done.stdout + done.stderr
    written = [
        f"scale.{key}={value if isinstance(value, int) else json.dumps(value)}"
        for key, value in scale_of(after).items()
    ]
    done = ft(folder, "resume", str(begun), "train.max_steps=4", *written)
    assert done.returncode == 0, done.stdout + done.stderr
    check_alike(whole, begun)
