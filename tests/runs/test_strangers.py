"""A run folder from somebody else: its Python does not run without consent, whatever is done with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_toolbox.files.own_python import foreign_python, named_python, without_foreign

Ft = Callable[..., tuple[int, str, str]]
HOOK = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from finetooth_hooks import hookimpl

@hookimpl
def ft_losses():
    return []
"""


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, and rows beside it."""
    place = tmp_path_factory.mktemp("strangers")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n")
    finetooth.run(
        {
            "model": str(tiny_model),
            "data": {"train": str(place / "rows.jsonl"), "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 2},
            "train": {"batch_size": 1, "precision": "fp32", "max_length": 64, "max_steps": 1},
            "checkpoint": {"every": 1},
            "trackers": [],
            "output": str(place / "run"),
        }
    )
    return place / "run"


@pytest.fixture
def gift(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The same folder as somebody sends it: with a plugin that writes a file as soon as it is imported."""
    return given_away(run, tmp_path, monkeypatch)


def given_away(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of a run with a plugin of somebody else, and the file that the plugin would write."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FT_TRUST_CODE", raising=False)
    folder, marker = Path(shutil.copytree(run, tmp_path / "gift")), tmp_path / "ran"
    (folder / "hook.py").write_text(HOOK.format(marker=str(marker)))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "plugins": ["./hook.py"]}))
    return folder, marker


USED: dict[str, Callable[[Path, Path], list[str]]] = {
    "merge": lambda folder, to: ["merge", str(folder), "--output", str(to)],
    "export": lambda folder, to: ["export", str(folder), "--to", "vllm-lora", "--output", str(to)],
    "push": lambda folder, to: ["push", str(folder), "--to", "hf:a/b", "--dry-run"],
    "chat": lambda folder, to: ["chat", str(folder), "--prompt", "Hello", "--max-tokens", "1"],
    "eval": lambda folder, to: [
        "eval", str(folder), "--evaluator", "loss", "--data", str(folder.parent / "rows.jsonl"),
    ],
    "checkpoint list": lambda folder, to: ["checkpoint", "list", str(folder)],
    "checkpoint show": lambda folder, to: ["checkpoint", "show", str(folder / "checkpoints/step-1")],
    "checkpoint verify": lambda folder, to: ["checkpoint", "verify", str(folder)],
    "checkpoint diff": lambda folder, to: [
        "checkpoint", "diff", str(folder / "artifact"), str(folder / "artifact"),
    ],
    "show": lambda folder, to: ["runs", "show", str(folder)],
    "report": lambda folder, to: ["report", str(folder)],
}  # fmt: skip
REFUSED: dict[str, Callable[[Path], list[str]]] = {
    "resume": lambda folder: ["resume", str(folder), "train.max_steps=2"],
    "run its recipe": lambda folder: ["run", str(folder / "recipe.yaml"), f"output={folder.parent / 'other'}"],
    "check its recipe": lambda folder: ["check", str(folder / "recipe.yaml")],
}


@pytest.mark.parametrize("use", USED)
def test_what_needs_no_code_runs_none(gift: tuple[Path, Path], ft: Ft, tmp_path: Path, use: str) -> None:
    folder, marker = gift
    shutil.copy(folder.parent / "gift" / "recipe.yaml", tmp_path / "kept.yaml")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    )
    code, out, err = ft(*USED[use](folder, tmp_path / "out"))
    assert code == 0, (out, err)
    assert not marker.exists()


def test_a_reward_model_scores_without_its_code(
    recipe: Callable[..., dict[str, Any]], ft: Ft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"role": "user", "content": "a"}]
    rows = [{"prompt": asked, **{side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    data = {"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"}
    train = {"batch_size": 2, "precision": "fp32", "max_length": 64, "max_steps": 1}
    finetooth.run(recipe(method="rm", data=data, train=train, trackers=[], output=str(tmp_path / "run")))
    folder, marker = given_away(tmp_path / "run", tmp_path, monkeypatch)
    code, out, err = ft("score", folder, tmp_path / "pairs.jsonl")
    assert code == 0 and "hook.py" in err, (out, err)
    assert not marker.exists()


@pytest.mark.slow
def test_a_server_over_a_strangers_adapter_runs_none_of_its_code(gift: tuple[Path, Path], tmp_path: Path) -> None:
    folder, marker = gift
    base = yaml.safe_load((folder / "recipe.yaml").read_text())["model"]
    command = [sys.executable, "-m", "finetooth", "serve", "openai", "--model", str(base), "--adapter", str(folder)]
    command += ["--port", "0", "--folder", str(tmp_path / "server")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "http://127.0.0.1:" in line:
                break
        server.terminate()
        rest = server.stdout.read()
    assert any("http://127.0.0.1:" in line for line in said), "".join(said) + rest
    assert not marker.exists()


@pytest.mark.parametrize("use", REFUSED)
def test_training_on_is_refused_without_consent(gift: tuple[Path, Path], ft: Ft, use: str) -> None:
    folder, marker = gift
    code, out, err = ft(*REFUSED[use](folder))
    assert code == 2 and "hook.py" in err and "--trust-code" in err, (out, err)
    assert not marker.exists()


def test_consent_and_own_runs_need_no_question(
    gift: tuple[Path, Path], ft: Ft, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = gift
    monkeypatch.setenv("FT_TRUST_CODE", "")  # put back at the end, whatever the command sets
    code, _, err = ft("resume", folder, "train.max_steps=2", "--trust-code")
    assert code == 0, err
    assert marker.exists()
    marker.unlink()
    monkeypatch.setenv("FT_TRUST_CODE", "")
    own = yaml.safe_load((folder / "recipe.yaml").read_text())
    own = {**own, "plugins": [str(folder / "hook.py")], "output": str(folder.parent / "own")}
    (folder.parent / "own.yaml").write_text(yaml.safe_dump(own))
    code, _, err = ft("run", folder.parent / "own.yaml")
    assert code == 0, err
    marker.unlink(missing_ok=True)
    code, _, err = ft("resume", folder.parent / "own", "train.max_steps=3")
    assert code == 0 and "--trust-code" not in err, err


def test_everything_that_names_python_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FT_TRUST_CODE", raising=False)
    recipe = {
        "model": {"name": "acme/new", "loader": {"name": "transformers", "trust_remote_code": True}},
        "method": {"name": "grpo", "rewards": [{"name": "function", "file": "rewards.py", "function": "score"}]},
        "environment": {"name": "verifiers", "load": "./gym.py:make"},
        "plugins": ["hook.py", {"use": "./other.py", "options": {"a": 1}}, "acme-plugin"],
    }
    for name in ("rewards.py", "gym.py", "hook.py", "other.py"):
        (tmp_path / name).write_text(f"{name!r}")
    named = list(dict.fromkeys(name for name, _ in named_python(recipe, tmp_path)))
    wanted = ["trust_remote_code of transformers", "rewards.py", "./gym.py:make", "hook.py", "./other.py"]
    assert named == wanted and foreign_python(recipe, tmp_path) == wanted
    kept, left = without_foreign(recipe, tmp_path)
    assert left == wanted and kept["plugins"] == ["acme-plugin"]
    assert kept["model"]["loader"]["trust_remote_code"] is False
    assert not Path(kept["method"]["rewards"][0]["file"]).exists() and "not run" in kept["environment"]["load"]


@pytest.mark.parametrize("use", ["./hook.txt", "./hook.py ", "./on.py:x/../hook.py"])
@pytest.mark.parametrize("command", ["resume", "chat"])
def test_no_spelling_of_a_plugin_file_runs_without_consent(
    gift: tuple[Path, Path], ft: Ft, use: str, command: str
) -> None:
    folder, marker = gift
    (folder / "on.py:x").mkdir()
    shutil.copy(folder / "hook.py", folder / "hook.txt")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "plugins": [use]}))
    rest = ["--prompt", "Hello", "--max-tokens", "1"] if command == "chat" else ["train.max_steps=2"]
    code, out, err = ft(command, str(folder), *rest)
    assert not marker.exists(), (out, err)
    assert code == (0 if command == "chat" and use != "./hook.txt" else 2), (out, err)


def test_an_own_file_that_was_changed_since_stays_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a file that lies in the folder itself counts by its content."""
    from finetooth_toolbox.files.own_python import record_own

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FT_TRUST_CODE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for file in (tmp_path / "own.py", tmp_path / "run/inside.py"):
        file.write_text("a = 1")
    record_own({"plugins": [str(tmp_path / "own.py"), "inside.py"]}, tmp_path / "run")
    for file in (tmp_path / "own.py", tmp_path / "run/inside.py"):
        file.write_text("a = 2")
    assert foreign_python({"plugins": [str(tmp_path / "own.py")]}, tmp_path / "run") == []
    assert foreign_python({"plugins": ["inside.py"]}, tmp_path / "run") == ["inside.py"]


def test_the_name_of_foreign_python_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger writes it; the terminal shows it."""
    from finetooth_core.settings.run_recipe import tell_not_run

    tell_not_run(tmp_path, ["\x1b[2Jhook.py"])
    said = capsys.readouterr().err
    assert "\x1b" not in said and "hook.py" in said
