"""Every data command with every method and every format: what fits is shown, all else is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., dict[str, Any]]

FORMATS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]},
    ],
    "instruction": [{"instruction": "Add.", "input": f"2, {i}", "output": f"{2 + i}"} for i in range(2)],
    "prompt_completion": [{"prompt": f"2+{i}?", "completion": f"{2 + i}"} for i in range(2)],
    "text": [{"text": f"Once upon {i} times."} for i in range(2)],
    "segments": [{"segments": [{"text": f"2+{i}?", "label": False}, {"text": "4", "label": True}]} for i in range(2)],
    "preference": [{"prompt": f"2+{i}?", "chosen": f"{2 + i}", "rejected": "9"} for i in range(2)],
    "stepwise": [{"prompt": "2+2*2?", "completions": ["4.", f"{i}."], "labels": [True, False]} for i in range(2)],
    "labelled": [{"prompt": f"2+{i}?", "completion": "4", "label": i == 0} for i in range(2)],
    "task": [{"prompt": f"2+{i}?", "solution": "4"} for i in range(2)],
}
PAIRS = ("dpo", "orpo", "simpo", "cpo")
FITTING = {
    **{method: {"preference"} for method in PAIRS},
    "sft": {"chat", "instruction", "prompt_completion", "segments"},
    "pretrain": {"text"},
    "kto": {"labelled"},
    "rm": {"preference", "labelled"},
    "prm": {"stepwise"},
}


@pytest.mark.parametrize("method", FITTING)
def test_every_format(ft: Run, recipe: Make, tmp_path: Path, method: str) -> None:
    for format_, rows in FORMATS.items():
        file = tmp_path / f"{format_}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = recipe(method=method, data={"train": str(file), "format": format_, "renderer": "chatml"})
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(given))
        fits = format_ in FITTING[method]
        commands = (("check",), ("check", "--json"), ("preview",), ("prepare",)) if fits else (("check",),)
        for command, *options in commands:
            code, out, err = ft("data", command, path, *options)
            assert code == (0 if fits else 2), (format_, command, err)
            assert "a bug" not in err and (fits or len(err.splitlines()) == 1), (format_, command, err)
            if options:
                found = json.loads(out)
                (survey,) = found["surveys"]
                assert survey["rows"] == len(rows)
                assert found["steps"] == 1 and found["ahead"]["epochs"] == 1


@pytest.mark.parametrize("method", [*PAIRS, "rm"])
def test_steps_of_pairs_are_counted_by_pair(ft: Run, recipe: Make, tmp_path: Path, method: str) -> None:
    """Five pairs, two a step: ten answers in three steps, and what is padding in them."""
    rows = [{"prompt": "2+2?", "chosen": f"{i}" * (i + 1), "rejected": "x" * (20 + i)} for i in range(5)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    train = {"batch_size": 2, "precision": "fp32", "max_length": 256, "epochs": 1, "shuffle": False}
    given = recipe(method=method, data={"train": str(file), "renderer": "chatml"}, train=train)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    code, out, err = ft("data", "check", tmp_path / "recipe.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    (survey,) = found["surveys"]
    assert (found["steps"], survey["data"], survey["rows"]) == (3, 12, 6)
    # a pair that is there twice is one row that repeats, not two answers
    assert survey["repeats"]["count"] == 1
    assert survey["repeats"]["first"] == [[f"{file}:6", f"{file}:1"]]
    _, text, _ = ft("data", "check", tmp_path / "recipe.yaml")
    assert "12 answers" in text and "made of 6 rows" in text
    assert "read while the run trains" not in text
