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
    "labelled_text": [{"text": f"2+{i} is 4.", "label": i / 2} for i in range(2)],
    "task": [{"prompt": f"2+{i}?", "solution": "4"} for i in range(2)],
}
PAIRS = ("dpo", "orpo", "simpo", "cpo")
FITTING = {
    **{method: {"preference"} for method in PAIRS},
    "sft": {"chat", "instruction", "prompt_completion", "segments", "text"},
    "pretrain": {"text"},
    "kto": {"labelled"},
    "rm": {"preference", "labelled", "labelled_text"},
    "prm": {"stepwise"},
}


Write = Callable[..., Path]


@pytest.fixture
def written(recipe: Make, tmp_path: Path) -> Write:
    """Writes the rows of a format, and a recipe for a method over them."""

    def write(method: str, format_: str, **data: Any) -> Path:
        file = tmp_path / f"{format_}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in FORMATS[format_]))
        given = {"train": str(file), "format": format_, "renderer": "chatml", **data}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(method=method, data=given)))
        return path

    return write


@pytest.mark.parametrize("method", FITTING)
def test_every_format_that_fits(ft: Run, written: Write, tmp_path: Path, method: str) -> None:
    page = tmp_path / "page.html"
    commands = (["check"], ["check", "--json"], ["preview"], ["preview", "--json"], ["preview", "--html", page])
    for format_ in sorted(FITTING[method]):
        path, rows = written(method, format_), FORMATS[format_]
        page.unlink(missing_ok=True)
        for command, *options in (*commands, ["prepare"]):
            code, out, err = ft("data", command, path, *options)
            assert code == 0, (format_, command, err)
            if command == "check" and options:
                found = json.loads(out)
                (survey,) = found["surveys"]
                assert survey["rows"] == len(rows)
                assert found["steps"] == 1 and found["ahead"]["epochs"] == 1
            elif options == ["--json"]:
                views = json.loads(out)
                assert {view["number"] for view in views} == {1, 2} and all(view["used"] for view in views), format_
        assert page.read_text(encoding="utf-8").count("<section") == len(views), format_


@pytest.mark.parametrize(
    ("method", "rows", "format_"),
    [
        ("rm", "labelled_text", "labelled_text"),
        ("pretrain", "labelled_text", "text"),
        ("sft", "labelled_text", "text"),
        ("rm", "labelled", "labelled"),
    ],
)
def test_a_method_finds_the_format_that_it_asks_for(
    ft: Run, written: Write, method: str, rows: str, format_: str
) -> None:
    """A text with a number is a document to all methods but those that score texts."""
    path = written(method, rows, format="auto")
    code, out, err = ft("check", path, "--json")
    assert code == 0, err
    decisions = {decision["setting"]: decision["value"] for decision in json.loads(out)["decisions"]}
    assert decisions["data.format"] == f"finetooth-formats:{format_}"


@pytest.mark.slow
@pytest.mark.parametrize("method", FITTING)
def test_every_format_that_does_not_fit_is_refused(ft: Run, written: Write, tmp_path: Path, method: str) -> None:
    """In one line that names the row, whatever command looks; a preview shows the rows all the same."""
    page = tmp_path / "page.html"
    for format_ in sorted(set(FORMATS) - FITTING[method]):
        path = written(method, format_)
        for command, *options in (["check"], ["prepare"], ["preview"], ["preview", "--html", page]):
            code, out, err = ft("data", command, path, *options)
            assert code == 2 and "a bug" not in err and len(err.splitlines()) == 1, (format_, command, err)
            assert f"{format_}.jsonl:1" in err, (format_, command, err)
            assert command == "preview" or not out, (format_, command, out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "pretrain", "dpo", "kto", "rm", "prm"])
def test_every_format_is_found_again_in_the_cache(
    ft: Run, written: Write, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """More rows than are made anew in a moment are kept, and what is found again is what was made."""
    for format_ in sorted(FITTING[method]):
        path = written(method, format_, workers=0)
        shown = [ft("data", *command, path, "--json") for command in (["check"], ["preview"])]
        with monkeypatch.context() as patched:
            patched.setattr("finetooth_rows.lazy_examples.SMALL_ROWS", 1)
            for told in ("made now and kept", "from the cache"):
                code, out, err = ft("data", "prepare", path)
                assert code == 0 and told in out, (format_, out, err)
                code, out, err = ft("data", "check", path, "--json")
                known = json.loads(shown[0][1])
                assert code == 0 and json.loads(out)["surveys"] == known["surveys"], (format_, err)
                assert ft("data", "preview", path, "--json") == shown[1], format_


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
