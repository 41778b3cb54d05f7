"""`ft chat` with what a toy run left, and what it says of an artifact that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_core.settings.run_recipe import recipe_of


def test_chat_with_a_run(ft: Any, folder: Path) -> None:
    assert ft("run", "recipe.yaml").code == 0
    answer = ft("chat", "runs/mine", "--prompt", "What is 2?", "--max-tokens", "5")
    assert answer.code == 0, answer.err
    assert answer.out.strip()
    assert ft("chat", "runs/mine", "--prompt", "What is 2?", "--max-tokens", "5").out == answer.out
    sampled = {
        ft("chat", "runs/mine", "--prompt", "a", "--temperature", "2", "--seed", str(seed)).out for seed in range(3)
    }
    assert len(sampled) == 3


def test_chat_goes_on(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_kit import PlainRenderer

    asked: list[list[str]] = []
    prompt = PlainRenderer.prompt

    def remember(self: PlainRenderer, messages: Any, tools: Any = ()) -> tuple[int, ...]:
        asked.append([message.content for message in messages])
        return prompt(self, messages, tools)

    monkeypatch.setattr(PlainRenderer, "prompt", remember)
    said = iter(["first", "", "second", "/reset", "third", "/quit", "never"])
    monkeypatch.setattr("click.prompt", lambda *a, **k: next(said))
    assert ft("run", "recipe.yaml").code == 0
    asked.clear()
    answer = ft("chat", "runs/mine", "--system", "be brief", "--max-tokens", "3")
    assert answer.code == 0, answer.err
    assert asked.pop(0) == ["?"], "a model that cannot be asked is refused before its weights load"
    assert [messages[:2] for messages in asked] == [["be brief", "first"]] * 2 + [["be brief", "third"]]
    assert len(asked[1]) == 4
    assert asked[1][3] == "second"


def test_a_run_on_a_model_folder_is_used_from_elsewhere(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "toy_folder").mkdir()
    (folder / "toy").mkdir()  # as the name that the loader knows; the name is what is meant
    assert ft("run", "recipe.yaml", "model={name: toy_folder, loader: auto}").code == 0
    assert ft("run", "recipe.yaml", "model={name: toy, loader: auto}", "output=runs/named").code == 0
    monkeypatch.chdir(folder / "runs")
    assert recipe_of(Path("mine"))["model"]["name"] == str(folder / "toy_folder")
    assert recipe_of(Path("named"))["model"]["name"] == "toy"
    answer = ft("chat", "mine", "--prompt", "x", "--max-tokens", "2")
    assert answer.code == 0, answer.err


def test_a_prompt_longer_than_the_model(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ft("run", "recipe.yaml").code == 0
    answer = ft("chat", "runs/mine", "--prompt", "x" * 600)
    assert answer.code == 2
    assert "the model was made for 512: no room to answer (say less" in answer.err
    said = iter(["x" * 600, "short", "/quit"])
    monkeypatch.setattr("click.prompt", lambda *a, **k: next(said))
    answer = ft("chat", "runs/mine", "--max-tokens", "3")
    assert answer.code == 0
    assert "made for 512" in answer.err
    assert "/reset" in answer.err
    assert answer.out.strip()  # the short one is answered


def test_chat_with_a_damaged_or_missing_artifact(ft: Any, folder: Path) -> None:
    assert ft("run", "recipe.yaml").code == 0
    (folder / "runs/mine/artifact/fake.txt").write_text("9")
    answer = ft("chat", "runs/mine", "--prompt", "x")
    assert answer.code == 2
    assert "differs from its SHA-256" in answer.err
    import shutil

    shutil.rmtree(folder / "runs/mine/artifact")
    answer = ft("chat", "runs/mine", "--prompt", "x")
    assert (answer.code, "the run kept no artifact" in answer.err) == (2, True)
    (folder / "runs/mine/result.json").unlink()  # as a run that was killed
    assert "if it was killed, ft resume " in ft("chat", "runs/mine", "--prompt", "x").err
