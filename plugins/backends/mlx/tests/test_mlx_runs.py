"""Whole runs with the MLX backend: the recipe of the guide, exact resume, chat's engine, and what is refused."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_core.cli import main
from safetensors.numpy import load_file

STOPS = """
import os
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    if str(report.step) == os.environ.get("FT_TEST_STOP"):
        raise KeyboardInterrupt
"""
RECIPE = Path(__file__).parents[4] / "docs/recipes/mac-lora.yaml"
ROWS = [
    {"messages": [{"role": "user", "content": f"{i % 5}+1?"}, {"role": "assistant", "content": f"{i % 5 + 1}"}]}
    for i in range(24)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Path:
    """A model `m` of the kind that the recipe names, and rows."""
    folder = tmp_path_factory.mktemp("mac")
    (folder / "m").mkdir()
    write(folder / "m", "qwen3")
    for name, rows in (("train.jsonl", ROWS), ("valid.jsonl", ROWS[:5])):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def overrides(folder: Path, output: str, **more: Any) -> list[str]:
    given = {
        "model": folder / "m", "data.train": folder / "train.jsonl", "data.eval": folder / "valid.jsonl",
        "train.max_length": 64, "train.epochs": 4, "evaluate.every": 6, "checkpoint.every": 6,
        "optimizer.learning_rate": 0.02, "output": folder / output, **more,
    }  # fmt: skip
    return [f"{name}={value}" for name, value in given.items()]


def artifact(folder: Path, output: str) -> bytes:
    return (folder / output / "artifact" / "adapter_model.safetensors").read_bytes()


def losses(folder: Path, output: str) -> list[float]:
    lines = map(json.loads, (folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line.get("loss") is not None]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The recipe of the guide, run to its end."""
    assert main(["run", str(RECIPE), *overrides(folder, "whole")]) == 0
    return folder / "whole"


def test_the_recipe_of_the_guide_learns(folder: Path, run: Path) -> None:
    seen = losses(folder, "whole")
    assert len(seen) == 24 and seen[-1] < 0.8 * seen[0]
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]["eval/loss"] < 0.8 * seen[0]
    paths = {name.split(".")[-3] for name in load_file(run / "artifact" / "adapter_model.safetensors")}
    assert paths == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, whose masks are keyed by step; the schedule knows the whole number of steps."""
    (folder / "stop.py").write_text(STOPS, encoding="utf-8")
    monkeypatch.setenv("FT_TEST_STOP", "8")
    assert main(["run", str(RECIPE), *overrides(folder, "stopped"), "--plugins", str(folder / "stop.py")]) == 130
    monkeypatch.delenv("FT_TEST_STOP")
    assert main(["resume", str(folder / "stopped"), "--plugins", str(folder / "stop.py")]) == 0
    assert losses(folder, "stopped") == losses(folder, "whole")
    assert artifact(folder, "stopped") == artifact(folder, "whole")


def test_micro_batches_change_nothing(folder: Path, run: Path) -> None:
    assert main(["run", str(RECIPE), *overrides(folder, "cut", **{"train.micro_batch_tokens": 64})]) == 0
    assert losses(folder, "cut") == pytest.approx(losses(folder, "whole"), rel=1e-4)


def test_gradient_checkpointing_changes_nothing(folder: Path, run: Path) -> None:
    assert main(["run", str(RECIPE), *overrides(folder, "twice", **{"train.gradient_checkpointing": "true"})]) == 0
    assert losses(folder, "twice") == pytest.approx(losses(folder, "whole"), rel=1e-5)


def test_a_run_can_be_asked(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("2+1?\n"))
    assert main(["chat", str(run), "--max-tokens", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() and "cut at --max-tokens 3" in printed.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["adapter=finetooth-lora:lora"], "finetooth-lora:lora works with torch, but backend finetooth-mlx:mlx is mlx"),
        (["optimizer=adopt"], "works with torch, but backend finetooth-mlx:mlx is mlx"),
        (["backend=torch", "adapter=finetooth-mlx:lora"], "finetooth-mlx:lora works with mlx"),
        (["backend=torch", "model.loader=mlxlm"], "works with mlx, but backend finetooth-torch:torch is torch"),
        (["hardware=cpu"], "hardware: finetooth-cpu:cpu is for torch, but the backend is mlx"),
        (["hardware=metal"], "finetooth-metal:metal cannot be used here"),
        (["train.micro_batch_tokens=4"], "train.micro_batch_tokens=4"),
        (["backend.kv_cache=int8"], "backend.kv_cache=int8: heads of this model have 8 numbers"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    folder: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(RECIPE), *overrides(folder, "none"), *given]) == 2
    printed = capsys.readouterr().err.strip()
    assert said in " ".join(printed.split()) and "Traceback" not in printed


@pytest.mark.slow
def test_what_make_mac_measures_runs_here() -> None:
    """Both trainers to their end, on a tiny model; how fast they are says nothing here. Nothing is padded that mlx-lm
    does not pad, and the head sees the tokens that train, once."""
    script = RECIPE.parents[2] / "tools/measure_mac.py"
    done = subprocess.run(
        [sys.executable, script, "--tiny", "--steps", "3"], capture_output=True, text=True, check=True
    )
    ours, theirs, compared = done.stdout.splitlines()
    assert ours.startswith("finetooth") and theirs.startswith("mlx-lm") and "of its memory" in compared
    pairs = [map(float, re.findall(r"([\d.]+) (?:positions|rows)", line)) for line in (ours, theirs)]
    layers, head = zip(*pairs, strict=True)
    assert layers[0] < layers[1] and head[0] <= 1 < head[1]
