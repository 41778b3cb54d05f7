"""A corpus of the hub that is trained as it comes: nothing is downloaded whole, and a killed run is the same again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_kit.hub_stand_in import HubStandIn, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow  # processes of their own: clients take the hub's address when they are imported

KILLING = """
import os, signal
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    if report.step == int(os.environ.get("KILL_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
"""
PROGRAM = """
import json, sys
import finetooth
given = json.loads(sys.argv[1])
finetooth.resume(given) if isinstance(given, str) else finetooth.run(given)
"""
ROWS = 15_000


def corpus() -> dict[str, bytes]:
    """Two files of 12 MB; every 20th text is empty and cannot be used."""
    made = {}
    for file in range(2):
        texts = ("" if row % 20 == 19 else f"file {file} row {row} " + "a river runs " * 60 for row in range(ROWS))
        lines = (json.dumps({"text": text}) for text in texts)
        made[f"data/train-{file:05d}.jsonl"] = "\n".join(lines).encode()
    return made


def process(given: Any, hub: HubStandIn, folder: Path, kill_at: int = 0) -> int:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0", "KILL_AT": str(kill_at),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def test_a_killed_run_over_a_streamed_corpus_goes_on_bit_for_bit(recipe: Callable[..., Any], tmp_path: Path) -> None:
    plugin = tmp_path / "killing_run.py"
    plugin.write_text(KILLING, encoding="utf-8")
    given = recipe(
        data={"train": {"name": "datasets", "path": "org/rows", "streaming": True}, "format": "text"},
        method={"name": "pretrain", "streaming": True, "shuffle_buffer": 5},
        train={"batch_size": 2, "max_length": 500, "max_steps": 24, "precision": "fp32"},
        checkpoint={"every": 4, "keep_last": 2},
        plugins=[str(plugin)],
        evaluate={"evaluators": []},
    )
    whole, killed = ({**given, "output": str(tmp_path / name)} for name in ("whole", "killed"))
    hub = HubStandIn(corpus())
    with serving(hub):
        assert process(whole, hub, tmp_path) == 0
        assert process(killed, hub, tmp_path, kill_at=7) == -signal.SIGKILL  # between checkpoints, inside a buffer
        assert process(str(tmp_path / "killed"), hub, tmp_path) == 0
    assert differences(left(tmp_path / "whole"), left(tmp_path / "killed")) == []
    assert json.loads(_last(tmp_path / "killed", "step"))["metrics"]["left_out"] >= 1
    assert not any(asked.startswith("GET") and "train-00001" in asked for asked in hub.asked)  # it was not come to
    kept = sum(file.stat().st_size for file in (tmp_path / "hub").rglob("*") if file.is_file())
    assert kept < 1_000_000  # nothing of the corpus was kept


def _last(run: Path, event: str) -> str:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(line for line in reversed(lines) if json.loads(line)["event"] == event)
