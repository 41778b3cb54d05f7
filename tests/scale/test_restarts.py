"""A rank that is killed: the launcher starts all ranks again, and they continue from the newest checkpoint. A launcher
that is asked to end: its ranks save and end with it."""

from __future__ import annotations

import json
import os
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
    assert_equal(folder / f"killed-{rank}", whole)


def assert_equal(run: Path, whole: Path) -> None:
    """Two runs trained the same, bit for bit."""
    (of_whole,), (of_run,) = ((f / "artifact").glob("*.safetensors") for f in (whole, run))
    kept = load_file(of_run)
    for key, value in load_file(of_whole).items():
        assert np.array_equal(kept[key], value), key


ASKER = """
import os, signal
from pathlib import Path
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    with open(f"rank-{os.environ['RANK']}.pid", "w") as file:
        file.write(str(os.getpid()))
    if os.environ["RANK"] == "0" and report.step == 3 and not Path("asked").exists():
        Path("asked").touch()
        os.kill(os.getppid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_a_launcher_that_is_asked_to_end_takes_its_ranks_along(folder: Path) -> None:  # noqa: F811
    """As `docker stop` and queues do: what was trained is saved, nobody trains on, and nothing is started again."""
    long = {"train": {**RECIPE["train"], "epochs": 2}, "schedule": "constant"}
    whole = trained(folder, "never-asked", 2, **long)
    (folder / "asker.py").write_text(ASKER, encoding="utf-8")
    scale = {"devices": 2, "launcher": {"name": "local", "restarts": 1}}
    recipe = {**RECIPE, **long, "output": "asked-run", "plugins": ["./asker.py"], "scale": scale}
    (folder / "asked.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "asked.yaml")
    assert done.returncode == 143, done.stdout + done.stderr
    assert "restart" not in done.stderr and "resume with: ft resume" in done.stdout + done.stderr
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / f"rank-{rank}.pid").read_text()), 0)
    done = ft(folder, "resume", "asked-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal(folder / "asked-run", whole)
