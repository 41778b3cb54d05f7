"""Steps that are not finite, and signals in the middle of one: what is trained, reported and kept is as if they had not
been begun."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_core.api import resume
from finetooth_hooks import EngineError, NotFinite

PLUGIN = Path(__file__).with_name("trapped_loss.py")
TRAPS = {"nan": 64, "cliff": 54, "signal": 44}
"""Letters of an answer, which are a token each, with the end of the answer."""
MEASURED = ("seconds", "tokens_per_second", "memory", "memory_now", "flops_per_second", "mfu")
Write = Callable[..., dict[str, Any]]


@pytest.fixture
def write(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> Write:
    """Writes 24 rows in batches of 4, and a recipe over them; a row by its number may hold a trap."""
    shutil.copy(PLUGIN, tmp_path / "trapped_loss.py")

    def made(
        name: str, traps: dict[int, str], *, rows: Sequence[int] = range(24), loss: str = "trapped", **sections: Any
    ) -> dict[str, Any]:
        lines = []
        for row in rows:
            answer = " ".join("0123456789"[(row + i) % 10] for i in range(TRAPS[traps[row]] // 2 if row in traps else 5))
            lines.append({"id": f"row-{row}", "messages": [
                {"role": "user", "content": f"Count from {row}."}, {"role": "assistant", "content": answer},
            ]})  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        train = {
            "batch_size": 4, "precision": "fp32", "max_length": 256, "shuffle": False, "micro_batch_tokens": 128,
            **sections.pop("train", {}),
        }  # fmt: skip
        return recipe(
            data={"train": str(tmp_path / f"{name}.jsonl"), "renderer": "chatml"},
            method={"name": "sft", "loss": {"name": loss, "folder": str(tmp_path)}},
            adapter={"name": "lora", "rank": 4, "dropout": 0.1},
            schedule="constant",
            train=train,
            plugins=[str(tmp_path / "trapped_loss.py")],
            output=str(tmp_path / name),
            **sections,
        )

    return made


def trained(folder: Path) -> dict[str, str]:
    """Hashes of the weights, and of the engine's state in the last checkpoint if there is one."""
    files = [*(folder / "artifact").glob("*.safetensors")]
    last = max((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]), default=None)
    files += [] if last is None else [*(last / "engine").iterdir()]
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def told(folder: Path) -> list[dict[str, Any]]:
    """Steps as they were reported, without what was measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == "step"]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


# --- steps that are not finite ----------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_stops_the_run(write: Write, tmp_path: Path) -> None:
    sections = write("bad", {9: "nan"}, trackers=["jsonl"])
    with pytest.raises(NotFinite, match="row-9|bad.jsonl:10") as caught:
        finetooth.run(sections)
    assert len(caught.value.rows) == 1
    found = result(tmp_path / "bad")
    assert (found["status"], found["exit_code"], found["steps"]) == ("failed", 1, 2)
    assert "NaN" in found["reason"] or "nan" in found["reason"]
    assert (tmp_path / "bad" / "checkpoints" / "step-2").is_dir()
    assert [line["step"] for line in told(tmp_path / "bad")] == [1, 2]


@pytest.mark.parametrize("kind", ["nan", "cliff"])
def test_skip_passes_the_data_over(write: Write, tmp_path: Path, kind: str) -> None:
    """What is trained is what is trained without the batch; only the first row is to blame for a loss, the whole batch
    for a gradient. What the user's loss drew in between is not the same, so here it draws nothing."""
    every = {"every": 1, "keep_last": 0}
    outcome = finetooth.run(write("bad", {9: kind}, train={"on_bad_step": "skip", "seed": 3}, checkpoint=every))
    found = result(tmp_path / "bad")
    (bad,) = found["bad_steps"]
    blamed = bad["rows"]
    assert len(blamed) == (1 if kind == "nan" else 4) and all(str(row) for row in blamed)
    assert (bad["step"], bad["policy"], bad["back_to"]) == (3, "skip", 2)
    assert outcome.status == "done" and outcome.steps == 5 and found["metrics"]["bad_steps"] == 1
    assert [line["step"] for line in told(tmp_path / "bad")] == [1, 2, 3, 4, 5]
