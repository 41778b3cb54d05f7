"""Errors are one line that names the place and the next action, and know their exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from finetooth_hooks import (
    DataError,
    EngineError,
    FinetoothError,
    PlanError,
    PluginError,
    RecipeError,
    StopRun,
    UpstreamError,
    UserError,
    errors,
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RecipeError("train.seed", "is -1", action="use 0 or more"), "train.seed: is -1 (use 0 or more)"),
        (RecipeError("", "is empty"), "is empty"),
        (DataError("a.jsonl:17", "no JSON"), "a.jsonl:17: no JSON"),
        (PluginError("acme", "needs hooks 2"), "acme: needs hooks 2"),
        (PlanError("lomo cannot accumulate", action="raise train.micro_batch_tokens"), None),
        (UserError("nothing there"), "nothing there"),
    ],
)
def test_user_errors_exit_with_two(error: UserError, text: str | None) -> None:
    assert isinstance(error, UserError) and error.exit_code == 2
    assert str(error) == text if text else error.action in str(error)
    assert "\n" not in str(error)


def test_the_tree() -> None:
    for cls in (RecipeError, DataError, PluginError, PlanError):
        assert issubclass(cls, UserError) and issubclass(cls, FinetoothError)
    assert EngineError("nan").exit_code == 1
    assert not issubclass(EngineError, UserError)
    assert issubclass(UpstreamError, EngineError) and not UpstreamError("gone").late
    assert UpstreamError("silent", late=True).late
    assert not issubclass(StopRun, FinetoothError)
    stop = StopRun("enough", exit_code=4)
    assert (str(stop), stop.reason, stop.exit_code) == ("enough", "enough", 4)


def test_places_are_kept() -> None:
    assert RecipeError("a.b", "x").setting == "a.b"
    assert DataError("a:1", "x").where == "a:1"
    assert PluginError("acme", "x").plugin == "acme"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one plugin, where pip is on the path; its root is the current folder."""
    packages = {
        ".": 'name = "finetooth"\n[project.optional-dependencies]\nstar = ["finetooth-star[gas]==1"]',
        "hooks/contract": 'name = "finetooth-hooks"',
        "plugins/sky/star": 'name = "finetooth-star"',
    }
    for folder, text in packages.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text(f"[project]\n{text}\n", encoding="utf-8")
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/pip").touch(0o755)
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "hooks/contract/src/finetooth_hooks/errors.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setenv("PATH", str(tmp_path / "env/bin"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("finetooth-star", "-e plugins/sky/star"),
        ("finetooth-star[gas]", "-e 'plugins/sky/star[gas]'"),
        ("finetooth[star]", "-e 'plugins/sky/star[gas]'"),
        ("finetooth-star==2", "-e plugins/sky/star"),
        ("finetooth-starling", "finetooth-starling"),
        ("numpy>=2", "'numpy>=2'"),
    ],
)
def test_a_clone_installs_its_own_folders(clone: Path, requirement: str, words: str) -> None:
    assert errors.install_command(requirement) == f"pip install {words}"


def test_folders_are_those_of_where_it_is_typed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone / "hooks")
    assert errors.install_command("finetooth-star") == "pip install -e ../plugins/sky/star"


def test_pip_is_the_one_of_this_environment(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert errors.install_command("numpy", option="--no-deps") == "env/bin/pip install --no-deps numpy"


@pytest.mark.parametrize("place", ["/errors.py", "/usr/lib/python3/site-packages/finetooth_hooks/errors.py"])
def test_elsewhere_an_index_has_them(clone: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(errors, "__file__", place)
    assert errors.install_command("finetooth[star]", "rich") == "pip install 'finetooth[star]' rich"
