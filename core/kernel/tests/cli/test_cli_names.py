"""A run by its name, and from any folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml


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


OWN = (
    "from finetooth_hooks import NoOptions, Schedule, hookimpl\n\n\n"
    "@hookimpl\ndef ft_schedules():\n    yield Schedule(name='own', build=f'{__name__}:build')\n\n\n"
    "class Flat:\n    def factor(self, step, total):\n        return 1.0\n\n"
    "    def observe(self, metrics): ...\n\n    def state(self):\n        return {}\n\n"
    "    def restore(self, state): ...\n\n\n"
    "def build(options: NoOptions, context):\n    return Flat()\n"
)


@pytest.fixture
def stopped(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an interrupted run with a plugin file that only the command line named."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.delenv("FT_TRUST_CODE", raising=False)
    (folder / "own.py").write_text(OWN)
    stops = ("plugins.0.options.interrupt_at=2", "checkpoint.every=1")
    begun = ft("run", "recipe.yaml", "schedule=own", *stops, "--plugins", "own.py")
    assert begun.code == 130, begun.err
    return folder / "runs/mine"


def test_the_recipe_of_a_run_names_the_plugins_of_the_command_line(ft: Any, stopped: Path) -> None:
    plugins = yaml.safe_load((stopped / "recipe.yaml").read_text())["plugins"]
    assert plugins[1:] == [str(stopped.parents[1] / "own.py")]
    answer = ft("resume", "mine", "plugins.0.options.interrupt_at=null", "--plugins", "own.py")
    assert answer.code == 0, answer.err
    assert len(yaml.safe_load((stopped / "recipe.yaml").read_text())["plugins"]) == 2


def test_an_override_gives_options_to_a_plugin_of_the_command_line(ft: Any, folder: Path) -> None:
    asking = "class Asked(Options):\n    least: int\n\nplugin_options = Asked\n\n@hookimpl\ndef ft_step(run, report):\n"
    (folder / "asks.py").write_text(f"from finetooth_hooks import Options, hookimpl\n\n{asking}    ...\n")
    answer = ft("run", "recipe.yaml", "plugins.1.options.least=3", "--plugins", "asks.py")
    assert answer.code == 0, answer.err
    answer = ft("check", "recipe.yaml", "output=other", "plugins=[./toy_plugin.py]", "--plugins", "asks.py")
    assert answer.code == 2 and "least" in answer.err, answer.err


def test_a_plugin_file_that_changed_is_refused_by_name(ft: Any, stopped: Path) -> None:
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (OWN, OWN + "\n")]
    Path("own.py").write_text(OWN + "\n")
    answer = ft("resume", "mine")
    assert answer.code == 2, answer.err
    assert f"content of plugin own.py: {digests[0][:12]} -> {digests[1][:12]}" in answer.err
    go_on = ("--accept-changes", "plugins.0.options.interrupt_at=null")
    answer = ft("resume", "mine", *go_on)
    assert answer.code == 0 and "changed and accepted: content of plugin own.py" in answer.err, answer.err


def test_a_plugin_file_that_moved_is_named_again(ft: Any, stopped: Path) -> None:
    (stopped.parents[1] / "other").mkdir()
    Path("own.py").rename("other/own.py")
    answer = ft("resume", "mine")
    assert answer.code == 2 and "own.py: cannot be read" in answer.err and "--plugins" in answer.err, answer.err
    answer = ft("resume", "mine", "plugins.0.options.interrupt_at=null", "--plugins", "other/own.py")
    assert answer.code == 0, answer.err


def test_a_run_whose_plugin_file_is_gone_can_be_used(ft: Any, folder: Path) -> None:
    Path("gate.py").write_text("from finetooth_hooks import hookimpl\n\n@hookimpl\ndef ft_step(run, report): ...\n")
    assert ft("run", "recipe.yaml", "--plugins", "gate.py").code == 0
    Path("gate.py").unlink()
    answer = ft("chat", "mine", "--prompt", "x", "--max-tokens", "2")
    assert answer.code == 0 and "gate.py is not there and was left out" in answer.err, answer.err


def test_a_plugin_of_a_strangers_command_line_needs_consent(
    ft: Any, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where no run has named it: with a state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(stopped.parents[1] / "elsewhere"))
    answer = ft("resume", "mine", "--plugins", "toy_plugin.py")
    assert answer.code == 2 and "own.py" in answer.err and "--trust-code" in answer.err, answer.err


def test_a_plugin_that_joins_at_a_resume_is_own_from_then_on(ft: Any, stopped: Path) -> None:
    Path("said.py").write_text("from finetooth_hooks import hookimpl\n\n@hookimpl\ndef ft_step(run, report): ...\n")
    assert ft("resume", "mine", "plugins.0.options.interrupt_at=3", "--plugins", "said.py").code == 130
    answer = ft("resume", "mine", "plugins.0.options.interrupt_at=null")
    assert answer.code == 0, answer.err


def test_a_resumed_run_hashes_the_files_of_its_settings_once(
    ft: Any, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_saving import named_files

    asked, hashes = [], named_files.named_files
    monkeypatch.setattr(named_files, "named_files", lambda *given: asked.append(given) or hashes(*given))
    answer = ft("resume", "mine", "plugins.0.options.interrupt_at=null")
    assert answer.code == 0, answer.err
    assert len(asked) == 1
