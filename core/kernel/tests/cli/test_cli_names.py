"""A run by its name, and from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def begun(ft: Any, folder: Path) -> Path:
    """A run whose recipe names its rows by a relative path, as a process left it that was killed before it had saved
    anything."""
    assert ft("run", "recipe.yaml", "checkpoint.every=2").code == 0
    run = folder / "runs/mine"
    for left in ("artifact", "checkpoints"):
        shutil.rmtree(run / left)
    (run / "result.json").unlink()
    return run


def test_a_run_goes_on_from_any_folder(ft: Any, begun: Path, tmp_path_factory: pytest.TempPathFactory,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    answer = ft("resume", str(begun))
    assert answer.code == 0, answer.err
    assert f"relative paths begin at {begun.parents[1]}, where the run was started" in answer.err
    assert json.loads((begun / "result.json").read_text())["status"] == "done"
    assert Path.cwd() == elsewhere and list(elsewhere.iterdir()) == []
    assert json.loads((begun / "run.json").read_text())["started_in"] == str(begun.parents[1])


def test_where_it_was_started_nothing_is_said(ft: Any, begun: Path) -> None:
    answer = ft("resume", "runs/mine")
    assert answer.code == 0 and "relative paths" not in answer.err


def test_a_plugin_of_the_command_line_is_of_the_folder_that_the_user_is_in(
    ft: Any, begun: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "said.py").write_text(
        "from finetooth_hooks import hookimpl\n\n"
        "@hookimpl\ndef ft_run_end(run, outcome):\n    print('the end', run.id)\n"
    )
    monkeypatch.chdir(elsewhere)
    answer = ft("resume", str(begun), "--plugins", "said.py")
    assert answer.code == 0, answer.err
    assert "the end mine" in answer.out


def test_when_that_folder_is_gone_relative_paths_are_of_the_current_one(
    ft: Any, begun: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**about, "started_in": "/nowhere/at/all"}))
    assert ft("resume", "runs/mine").code == 0


def test_checkpoints_that_a_recipe_keeps_beside_it_are_found_from_any_folder(
    ft: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("finetooth_disk")
    done = ft("run", "recipe.yaml", "checkpoint={every: 2, stores: [{name: disk, path: kept}]}")
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    answer = ft("checkpoint", "list", str(folder / "runs/mine"))
    assert answer.code == 0 and "step-4" in answer.out, answer.err


def test_every_command_takes_a_runs_name(ft: Any, folder: Path) -> None:
    assert ft("run", "recipe.yaml", "checkpoint.every=2").code == 0
    answer = ft("checkpoint", "list", "mine")
    assert answer.code == 0 and "step-4" in answer.out, answer.err
    assert ft("checkpoint", "verify", "mine").code == 0
    assert ft("chat", "mine", "--prompt", "x", "--max-tokens", "2").out == (
        ft("chat", "runs/mine", "--prompt", "x", "--max-tokens", "2").out
    )
    assert ft("plugins", "explain", "optimizer:toy", "mine").out == (
        ft("plugins", "explain", "optimizer:toy", "runs/mine").out
    )
    answer = ft("resume", "mine")
    assert answer.code == 0 and "resuming after step 4" in answer.err, answer.err
    answer = ft("resume", "mime")
    assert answer.code == 2 and "no run has this name (did you mean runs/mine?)" in answer.err


def test_a_folder_under_runs_that_holds_no_run_is_not_proposed(ft: Any, folder: Path) -> None:
    (folder / "runs/half").mkdir(parents=True)
    answer = ft("resume", "half")
    assert answer.code == 2 and "half: the folder holds no run (none is here: ft run RECIPE" in answer.err, answer.err


def test_a_resumed_run_asks_for_the_file_that_the_command_line_named(ft: Any, folder: Path) -> None:
    (folder / "own.py").write_text(
        "from finetooth_hooks import NoOptions, Schedule, hookimpl\n\n\n"
        "@hookimpl\ndef ft_schedules():\n    yield Schedule(name='own', build=f'{__name__}:build')\n\n\n"
        "class Flat:\n    def factor(self, step, total):\n        return 1.0\n\n"
        "    def observe(self, metrics): ...\n\n    def state(self):\n        return {}\n\n"
        "    def restore(self, state): ...\n\n\n"
        "def build(options: NoOptions, context):\n    return Flat()\n"
    )
    begun = ft("run", "recipe.yaml", "schedule=own", "plugins.0.options.interrupt_at=2", "--plugins", "own.py")
    assert begun.code == 130, begun.err
    answer = ft("resume", "mine")
    assert answer.code == 2 and "the run was made with own.py, which is not named" in answer.err, answer.err
    assert answer.err.rstrip().endswith("(add --plugins with the path of own.py)")
    assert "no schedule 'own'" not in ft("resume", "mine", "--plugins", "own.py").err
