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
import torch
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
    """Writes rows in batches of 4, and a recipe over them; a row by its number may hold a trap."""
    shutil.copy(PLUGIN, tmp_path / "trapped_loss.py")

    def made(
        name: str, traps: dict[int, str], *, rows: Sequence[int] = range(24), noise: bool = False,
        loss: str = "trapped", **sections: Any,
    ) -> dict[str, Any]:  # fmt: skip
        lines = []
        for row in rows:
            answer = "".join("0123456789"[(row + i) % 10] for i in range(TRAPS[traps[row]] if row in traps else 5))
            said = (("user", f"Count from {row}."), ("assistant", answer))
            lines.append({"messages": [{"role": role, "content": text} for role, text in said]})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        train = {"batch_size": 4, "precision": "fp32", "max_length": 256, "shuffle": False, "micro_batch_tokens": 128}
        return recipe(
            **{
                "data": {"train": str(tmp_path / f"{name}.jsonl"), "renderer": "chatml"},
                "method": {"name": "sft", "loss": {"name": loss, "folder": str(tmp_path), "noise": noise}},
                "adapter": {"name": "lora", "rank": 4, "dropout": 0.1 if noise else 0.0},
                "schedule": "constant",
                "plugins": [str(tmp_path / "trapped_loss.py")],
                "output": str(tmp_path / name),
                **sections,
                "train": {**train, **sections.get("train", {})},
            }
        )

    return made


def trained(folder: Path) -> dict[str, str]:
    """Hashes of what was trained: the artifact's weights."""
    files = [*(folder / "artifact").glob("*.safetensors")]
    assert files
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def state(folder: Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds: hashes of the engine's files, the cursor, random states."""
    kept = folder / "checkpoints" / f"step-{step}"
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (kept / "engine").iterdir()}
    content = json.loads((kept / "state.json").read_text())
    return {"engine": hashes, **{key: content[key] for key in ("step", "method", "random", "bad_steps")}}


def told(folder: Path) -> list[dict[str, Any]]:
    """Steps as they were reported, without what was measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == "step"]
    return [{**step, "metrics": {k: v for k, v in step["metrics"].items() if "memory" not in k}} for step in steps]


def numbers(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in told(folder)]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


# --- steps that are not finite ----------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_stops_the_run(write: Write, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"nan at step 3, with the data '.*bad.jsonl:10'") as caught:
        finetooth.run(write("bad", {9: "nan"}))
    assert caught.value.rows == (f"{tmp_path / 'bad.jsonl'}:10",)
    found = result(tmp_path / "bad")
    assert (found["status"], found["exit_code"], found["steps"], found["bad_steps"]) == ("failed", 1, 2, [])
    assert (tmp_path / "bad" / "checkpoints" / "step-2" / "manifest.json").is_file()
    finetooth.run(write("good", {}, rows=range(8)))
    assert trained(tmp_path / "bad") == trained(tmp_path / "good")
    assert numbers(tmp_path / "bad") == numbers(tmp_path / "good")


def test_the_operation_whose_gradient_is_not_a_number_is_named(write: Write) -> None:
    """sqrt gives infinity there; the first that makes NaN of it is the norm before the head."""
    backend = {"name": "torch", "detect_anomaly": True}
    refused = r"backend\.detect_anomaly: _RmsNormBackward gives NaN, the gradient of its input 1"
    try:
        with pytest.warns(UserWarning, match="in rms_norm"), pytest.raises(EngineError, match=refused):
            finetooth.run(write("found", {0: "cliff"}, backend=backend))
    finally:
        torch.autograd.set_detect_anomaly(False)


@pytest.mark.parametrize(("kind", "rows"), [("nan", [10]), ("cliff", [9, 10, 11, 12])])
def test_skip_passes_the_data_over(write: Write, tmp_path: Path, kind: str, rows: list[int]) -> None:
    """One row is to blame for a loss, the batch for a gradient; what is trained is what the other batches train."""
    finetooth.run(write("bad", {9: kind}, train={"on_bad_step": "skip"}))
    found = result(tmp_path / "bad")
    (bad,) = found["bad_steps"]
    assert bad["rows"] == [f"{tmp_path / 'bad.jsonl'}:{row}" for row in rows]
    assert (bad["step"], bad["policy"], bad["back_to"]) == (3, "skip", 2)
    assert (found["status"], found["steps"], found["metrics"]["bad_steps"]) == ("done", 5, 1)
    finetooth.run(write("good", {}, rows=[*range(8), *range(12, 24)]))
    assert trained(tmp_path / "bad") == trained(tmp_path / "good")
    assert numbers(tmp_path / "bad") == numbers(tmp_path / "good")


@pytest.mark.parametrize("store", ["device", "host"])
def test_rollback_goes_back_to_the_snapshot_and_on_behind_the_data(write: Write, tmp_path: Path, store: str) -> None:
    """Bad in the fourth batch, with a snapshot after the second: the third is undone, and the trackers are cut."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    keep = {"every": 2, "stores": [store]}
    sections = write("bad", {13: "nan"}, train={"on_bad_step": "rollback"}, checkpoint=keep)
    finetooth.run({**sections, "trackers": ["jsonl", "tensorboard"]})
    found = result(tmp_path / "bad")
    (bad,) = found["bad_steps"]
    assert (bad["step"], bad["policy"], bad["back_to"]) == (4, "rollback", 2)
    assert bad["rows"] == [f"{tmp_path / 'bad.jsonl'}:14"]
    assert (found["status"], found["steps"]) == ("done", 4)
    finetooth.run(write("good", {}, rows=[*range(8), *range(16, 24)]))
    assert trained(tmp_path / "bad") == trained(tmp_path / "good")
    assert numbers(tmp_path / "bad") == numbers(tmp_path / "good")
    events = EventAccumulator(str(tmp_path / "bad" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Tensors("train/loss")] == [1, 2, 3, 4]


def test_ten_bad_steps_in_a_row_end_the_run(write: Write, tmp_path: Path) -> None:
    rows = range(1, 26)
    sections = write("bad", dict.fromkeys(rows, "nan"), rows=range(26), train={"on_bad_step": "skip", "batch_size": 2})
    with pytest.raises(EngineError, match="10 steps in a row"):
        finetooth.run({**sections, "train": {**sections["train"], "batch_size": 1}})
    found = result(tmp_path / "bad")
    assert (found["status"], found["steps"], len(found["bad_steps"])) == ("failed", 1, 10)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_an_interrupt_behind_a_bad_step_keeps_it_passed_over(write: Write, tmp_path: Path) -> None:
    """The step after the bad one is broken off: what goes on does not meet the bad data again."""
    traps, train = {9: "nan", 13: "signal"}, {"on_bad_step": "skip"}
    finetooth.run(write("whole", traps, noise=True, train=train))
    (tmp_path / "signals").write_text(json.dumps([signal.SIGTERM]))
    assert finetooth.run(write("cut", traps, noise=True, train=train)).exit_code == 143
    assert result(tmp_path / "cut")["steps"] == 2
    resume(tmp_path / "cut")
    assert len(result(tmp_path / "cut")["bad_steps"]) == 1
    assert trained(tmp_path / "cut") == trained(tmp_path / "whole")
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("loss", ["trapped", "trapped_step"])
def test_a_signal_in_the_middle_of_a_step(write: Write, tmp_path: Path, number: int, code: int, loss: str) -> None:
    """The step is dropped after the micro-batch, the state is that of its start, and what goes on is bit for bit a run
    that nobody interrupted, a loss that draws from the global generators included."""
    keep = {"every": 4, "keep_last": 0}
    finetooth.run(write("whole", {9: "signal"}, noise=True, loss=loss, checkpoint=keep))
    (tmp_path / "signals").write_text(json.dumps([number]))
    outcome = finetooth.run(write("cut", {9: "signal"}, noise=True, loss=loss, checkpoint=keep))
    assert (outcome.status, outcome.exit_code, outcome.steps) == ("interrupted", code, 2)
    assert not (tmp_path / "signals").exists()
    assert "gradients.safetensors" not in state(tmp_path / "cut", 2)["engine"]
    assert resume(tmp_path / "cut").status == "done"
    assert trained(tmp_path / "cut") == trained(tmp_path / "whole")
    assert state(tmp_path / "cut", 4) == state(tmp_path / "whole", 4)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert [line["step"] for line in told(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_the_second_ctrl_c_leaves_at_once(write: Write, tmp_path: Path) -> None:
    """Nothing more is saved than what was; from there it goes on exactly."""
    keep = {"every": 1, "keep_last": 0}
    finetooth.run(write("whole", {9: "signal"}, noise=True, checkpoint=keep))
    (tmp_path / "signals").write_text(json.dumps([signal.SIGINT, signal.SIGINT]))
    outcome = finetooth.run(write("cut", {9: "signal"}, noise=True, checkpoint=keep))
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    assert "interrupted twice" in result(tmp_path / "cut")["reason"]
    kept = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if not path.name.startswith(".")}
    assert kept <= {"step-1", "step-2"} and not (tmp_path / "cut" / "artifact").exists()
    resume(tmp_path / "cut")
    assert trained(tmp_path / "cut") == trained(tmp_path / "whole")
    assert state(tmp_path / "cut", 6) == state(tmp_path / "whole", 6)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_with_the_signals_code_and_says_how_to_go_on(
    write: Write, tmp_path: Path, number: int, code: int
) -> None:
    def ft(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "finetooth", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    for name in ("whole", "cut"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(write(name, {9: "signal"}, noise=True)))
    assert ft("run", "whole.yaml").returncode == 0
    (tmp_path / "signals").write_text(json.dumps([number]))
    done = ft("run", "cut.yaml")
    assert done.returncode == code and "Traceback" not in done.stderr
    assert f"{number.name} after step 2" in done.stdout + done.stderr and "ft resume" in done.stdout + done.stderr
    done = ft("resume", str(tmp_path / "cut"))
    assert done.returncode == 0, done.stderr
    assert trained(tmp_path / "cut") == trained(tmp_path / "whole")
