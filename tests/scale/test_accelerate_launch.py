"""Ranks that accelerate's own launcher starts. It has one launcher for several processes, which it calls that of GPUs;
on a CPU it starts one process, whatever --num_processes says, unless MPI starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import RECIPE, folder, steps, trained  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
CONFIGURATION = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 2, "num_machines": 1,
    "machine_rank": 0, "mixed_precision": "no", "use_cpu": False,
}  # fmt: skip


def test_its_ranks_take_the_steps_of_those_of_scale(folder: Path) -> None:  # noqa: F811
    ours = trained(folder, "by-scale", 2)
    (folder / "by-accelerate.yaml").write_text(json.dumps({**RECIPE, "output": "by-accelerate"}), encoding="utf-8")
    (folder / "default_config.yaml").write_text(json.dumps(CONFIGURATION), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    given = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache")}
    launch = ["-m", "accelerate.commands.launch", "--config_file", "default_config.yaml", "-m", "finetooth"]
    done = subprocess.run(
        [sys.executable, *launch, "run", "by-accelerate.yaml"], cwd=folder, env=given, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = folder / "by-accelerate"
    assert [line["loss"] for line in steps(theirs)] == [line["loss"] for line in steps(ours)]
    plan = json.loads((theirs / "plan.json").read_text(encoding="utf-8"))
    assert any("over 2 ranks" in decision["reason"] for decision in plan["decisions"])
