"""A rank that is killed: the launcher starts all ranks again, and they continue from the newest checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import RECIPE, folder, ft, steps, trained  # noqa: F401 - folder is a fixture

KILLER = """
import os, signal
from pathlib import Path
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    if os.environ.get("RANK") == "RANK_TO_KILL" and report.step == 3 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["1", "0"])
def test_a_killed_rank_costs_the_steps_since_the_checkpoint(folder: Path, rank: str) -> None:  # noqa: F811
    """Two epochs of three steps, a checkpoint after every second, kill -9 after the third: equal to an unbroken run."""
    long = {"train": {**RECIPE["train"], "epochs": 2}, "schedule": "constant", "checkpoint": {"every": 2}}
    whole = trained(folder, "never-killed", 2, **long)
    (folder / "killed").unlink(missing_ok=True)
    (folder / "killer.py").write_text(KILLER.replace("RANK_TO_KILL", rank), encoding="utf-8")
    scale = {"devices": 2, "launcher": {"name": "local", "restarts": 1}}
    recipe = {**RECIPE, **long, "output": f"killed-{rank}", "plugins": ["./killer.py"], "scale": scale}
    (folder / "killed.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    done = ft(folder, "run", "killed.yaml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "restart 1 of 1: all ranks begin again from the newest checkpoint" in done.stderr
    assert [step["step"] for step in steps(folder / f"killed-{rank}")][-1] == 6
    (of_whole,), (of_killed,) = ((f / "artifact").glob("*.safetensors") for f in (whole, folder / f"killed-{rank}"))
    kept = load_file(of_killed)
    for key, value in load_file(of_whole).items():
        assert np.array_equal(kept[key], value), key
