"""`ft runs` over folders of runs, as a user calls it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_runs import command as module
from finetooth_runs.comparison import differences
from finetooth_runs.tables import table
from finetooth_toolbox.files.locks import lock_folder


def make(name, loss, **settings):
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "1"}')
    (folder / "recipe.yaml").write_text("model: toy\n")
    recipe = {"model": "toy", "output": str(folder), "train": {"seed": 0, **settings}}
    decisions = [{"setting": "train.precision", "value": "bf16", "reason": "fast"}]
    plan = {"recipe": recipe, "picks": {"method": "acme:sft"}, "total_steps": 2, "decisions": decisions}
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = [{"event": "step", "step": step, "loss": loss / step, "seconds": 1.0, "metrics": {}} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"status": "done", "reason": "", "steps": 2, "seconds": 2.0, "best": {"eval/loss": loss}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make("one", 2.0), make("two", 3.0, batch_size=4)


def said(*arguments):
    done = CliRunner().invoke(module.command, arguments, catch_exceptions=False, standalone_mode=False)
    return done.output


def test_list_show_and_du(two):
    lines = said("list").splitlines()
    assert lines[0].split() == ["run", "status", "steps", "best", "or", "last", "method", "model", "began"]
    assert lines[1].startswith("one  done    2/2    eval/loss 2")
    shown = said("show", "two")
    assert "status          done" in shown and "last loss       1.5" in shown and "metrics.jsonl" in shown
    (one, other) = json.loads(said("list", "--json"))
    assert (one["run"], one["steps"], other["best"]) == ("one", 2, {"eval/loss": 3.0})
    found = {row["run"]: row["bytes"] for row in json.loads(said("du", "--json"))}
    assert found["runs/one"] == sum(path.stat().st_size for path in two[0].iterdir())
    assert said("list", "--status", "failed") == "no run in runs is failed\n"
    with pytest.raises(click.BadParameter, match="'finished' is not one of 'done'"):
        said("list", "--status", "finished")
    with pytest.raises(UserError, match=r"--folder elsewhere: RUNS are named too \(leave out one of them\)"):
        said("du", "one", "--folder", "elsewhere")


def test_a_long_name_does_not_touch_its_value(two):
    result = json.loads((two[0] / "result.json").read_text())
    (two[0] / "result.json").write_text(json.dumps({**result, "best": {"eval/perplexity": 3.0}}))
    assert "best eval/perplexity  3" in said("show", "one")


def test_trials_of_a_sweep_are_told_of_and_named_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for trial in (0, 1):
        make(f"lr-sweep/trial-{trial}", 2.0 + trial, batch_size=trial + 1)
    hint = "lr-sweep holds 2 more: ft runs list --folder runs/lr-sweep\n"
    assert said("list") == f"no run in runs\n{hint}"
    make("one", 1.0)
    assert said("list").endswith(hint)
    assert "runs/lr-sweep/trial-1" in said("show", "lr-sweep/trial-1")
    assert "train.batch_size" in said("compare", "lr-sweep/trial-0", "lr-sweep/trial-1")
    taken = {row["run"]: row["bytes"] for row in json.loads(said("du", "--json"))}
    below = sum(path.stat().st_size for path in Path("runs/lr-sweep").rglob("*") if path.is_file())
    assert taken["runs/lr-sweep"] == below and set(taken) == {"runs/lr-sweep", "runs/one"}
    with pytest.raises(UserError, match=r"'lr-sweep' is not one run, it holds 2 \(name one, such as lr-sweep/trial-"):
        said("rm", "lr-sweep", "--yes")
    with pytest.raises(UserError, match="no run"):
        said("show", "../runs/lr-sweep")


def test_compare_shows_settings_that_differ_and_results(two):
    found = json.loads(said("compare", "one", "two", "--json"))
    assert found["settings"] == {"train.batch_size": [None, 4]}  # not where they lie
    assert found["results"]["last loss"] == [1.0, 1.5] and found["results"]["best eval/loss"] == [2.0, 3.0]
    text = said("compare", "one", "two")
    assert "train.batch_size  not set  4" in text
    with pytest.raises(UserError, match="one run cannot be compared"):
        said("compare", "one")


def test_a_hash_is_shown_by_its_first_digits_and_what_is_missing_in_words(two):
    for folder, digest in zip(two, ("ab" * 32, None), strict=True):
        plan = json.loads((folder / "plan.json").read_text())
        plan["decisions"] = [
            *plan.get("decisions", []),
            *([{"setting": "model.parent", "value": digest}] if digest else []),
        ]
        (folder / "plan.json").write_text(json.dumps(plan))
    assert "model.parent      abababababab  not set" in said("compare", "one", "two")
    assert json.loads(said("compare", "one", "two", "--json"))["settings"]["model.parent"] == ["ab" * 32, None]


def test_what_recipes_say_in_two_ways_is_no_difference():
    """A name alone, a mapping with a name, and nothing where the plan takes the same; seen in a first comparison."""
    decided = [
        {"setting": "adapter", "value": "finetooth-lora:lora"},
        {"setting": "method", "value": "finetooth-sft:sft"},
    ]
    recipes = (
        {"model": "m", "method": "sft"},
        {"model": {"name": "m"}, "method": {"name": "sft"}, "adapter": {"name": "lora", "rank": 4}},
        {"model": "m", "adapter": "lora"},
    )
    runs = [SimpleNamespace(plan={"recipe": recipe, "decisions": decided}) for recipe in recipes]
    assert differences(runs) == {"adapter.rank": [None, 4, None]}
    other = SimpleNamespace(plan={"recipe": {"model": "n", "adapter": "acme:lora"}, "decisions": decided})
    assert differences([runs[0], other]) == {"model": ["m", "n"], "adapter": ["finetooth-lora:lora", "acme:lora"]}


def test_defaults_that_a_resume_wrote_down_are_no_difference():
    """A resumed run's recipe has the options of the first plan's picks, and `auto` where the plan decides anew."""
    options = {"backend": {"tf32": False, "packing": "auto"}, "adapter": {"rank": 16}}
    decided = [{"setting": "backend", "value": "acme:b"}, {"setting": "backend.packing", "value": True}]
    backend = {"name": "acme:b", "tf32": False, "packing": "auto"}
    recipes = ({"model": "m"}, {"model": "m", "backend": backend}, {"model": "m", "adapter": {"rank": 8}})
    runs = [
        SimpleNamespace(plan={"recipe": recipe, "decisions": decided, "options": {**options, **recipe}})
        for recipe in recipes
    ]
    assert differences(runs) == {"adapter.rank": [16, 16, 8]}


def test_rm_asks_and_refuses_what_runs(two):
    with pytest.raises(UserError, match=r"would be removed \(add --yes; nothing was removed\)"):
        said("rm", "one")
    with lock_folder(two[1]), pytest.raises(UserError, match="the run is under way"):
        said("rm", "one", "two", "--yes")
    assert two[0].exists() and two[1].exists()
    assert said("rm", "one", "--yes") == "runs/one removed\n"
    assert not two[0].exists() and two[1].exists()


def test_rm_does_not_follow_links(two, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (two[0] / "link").symlink_to(kept)
    said("rm", "one", "--yes")
    assert (kept / "file").exists()
    (tmp_path / "runs" / "alias").symlink_to(two[1].absolute())
    with pytest.raises(UserError, match="is a link"):
        said("rm", "alias", "--yes")
    assert two[1].exists()


def test_an_unknown_run_names_the_nearest(two):
    with pytest.raises(UserError, match="did you mean runs/one"):
        said("show", "onne")
    shutil.rmtree("runs")
    assert said("list") == "no run in runs\n"
    with pytest.raises(UserError, match="no such folder"):
        said("list", "--folder", "elsewhere")


def test_forty_columns(two, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(module, "width", lambda: 40)
    lines = said("list").splitlines()
    assert max(map(len, lines)) <= 40 and "one" in lines and "  status: done" in lines
    assert all(line.isascii() for line in lines) and "\x1b" not in said("list")


def test_what_a_folder_says_cannot_move_the_terminal():
    made = table(("run", "status"), [("a\x1b[2Jb", "x\ny")], None)
    assert "\x1b" not in made and made.splitlines()[1] == "a\\x1b[2Jb  x y"


def test_a_pipe_has_no_width(monkeypatch):
    from finetooth_runs.tables import width

    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert width() is None
