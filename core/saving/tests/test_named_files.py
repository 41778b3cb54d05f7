"""What settings name is known again by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetooth_saving.found_checkpoints import content_changes, differences, versions
from finetooth_saving.named_files import named_files


def test_files_that_settings_name_are_hashed_and_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.jinja", "sft", "rows.jsonl", "reward.py"):
        (tmp_path / name).write_text(name)
    recipe = {
        "model": "t.jinja",
        "method": {"name": "sft", "rewards": [{"file": str(tmp_path / "reward.py")}, {"file": "gone.py"}]},
        "data": {"train": "rows.jsonl", "renderer": {"template": "t.jinja", "arguments": {"a": "\0./", "b": 1.5}}},
        "output": "t.jinja",
    }
    roles = {"reference": SimpleNamespace(model=None), "teacher": SimpleNamespace(model=SimpleNamespace(digest="d"))}
    wanted = {
        setting: hashlib.sha256(name.encode()).hexdigest()
        for setting, name in (("method.rewards.0.file", "reward.py"), ("data.renderer.template", "t.jinja"))
    }
    assert named_files(recipe, roles) == {"method.teacher": "d", **wanted}


def test_a_resume_names_what_has_another_content() -> None:
    before = {"base": {"config.json": "1" * 64, "gone": "2"}, "named": {"data.renderer.template": "3" * 64, "old": "4"}}
    now = {"base": {"config.json": "5" * 64}, "named": {"data.renderer.template": "6" * 64, "new": "7"}}
    assert content_changes(before, now) == (
        f"base model, config.json: {'1' * 12} -> {'5' * 12}",
        "base model, gone: 2 -> not there",
        f"content of data.renderer.template: {'3' * 12} -> {'6' * 12}",
    )
    assert content_changes({"base": {}}, now) == ()  # a checkpoint of an earlier release says nothing


def test_held_out_rows_are_compared_as_those_that_train() -> None:
    plan = SimpleNamespace(decisions=[SimpleNamespace(setting="data.eval.sha256", value="b")])
    before = {"decisions": [{"setting": "data.eval.sha256", "value": "a"}]}
    assert differences(before, plan) == (("data.eval.sha256: a -> b",), ())  # type: ignore[arg-type]


def test_a_local_plugin_is_the_same_file_from_wherever_it_is_named() -> None:
    before = {"plugins": {"plug.py": "sha256:1", "acme-x": "1.0"}}
    assert versions(before, {"plugins": {"recipes/plug.py": "sha256:1", "acme-x": "1.0"}}) == ()
    now = {"plugins": {"recipes/plug.py": "sha256:2", "acme-x": "1.0"}}
    assert versions(before, now) == ()
    assert content_changes(before, now) == ("content of plugin plug.py: sha256:1 -> sha256:2",)


def test_of_two_plugin_files_with_one_name_a_change_of_either_counts() -> None:
    before = {"plugins": {"a/plug.py": "sha256:" + "1" * 64, "b/plug.py": "sha256:" + "2" * 64}}
    moved = {"plugins": {"c/plug.py": "sha256:" + "2" * 64, "d/plug.py": "sha256:" + "1" * 64}}
    assert content_changes(before, moved) == ()
    changed = {"plugins": {**before["plugins"], "a/plug.py": "sha256:" + "3" * 64}}
    told = f"content of plugin plug.py: {'1' * 12}, {'2' * 12} -> {'2' * 12}, {'3' * 12}"
    assert content_changes(before, changed) == (told,)
