"""Runs whose ranks Ray starts, on two nodes, against those of `scale` on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import CASES, RECIPE, folder, steps, trained  # noqa: F401 - folder is a fixture

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins" / "launchers" / "ray" / "tests"))
from clusters import two_nodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a process that finds a cluster of two nodes."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    given = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path_factory.mktemp("home"))}
    with two_nodes(Path(given["HOME"]), cpus=1) as address:
        yield {**kept, **given, "RAY_ADDRESS": address}


def ft(folder: Path, environment: dict[str, str], *words: str) -> None:  # noqa: F811
    given = {**environment, "FT_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "finetooth", *words], cwd=folder, env=given, text=True, capture_output=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert words[1].removesuffix(".yaml") in done.stdout  # rank 0 speaks here


@pytest.mark.parametrize("case", ["sft", "dpo"])
def test_ranks_of_ray_take_the_steps_of_those_of_this_machine(
    folder: Path,  # noqa: F811
    environment: dict[str, str],
    case: str,
) -> None:
    changes = {**CASES[case], "schedule": "constant", "checkpoint": {"every": 1}}
    ours = trained(folder, f"here-{case}", 2, **changes)
    recipe: dict[str, Any] = {
        **RECIPE, **changes, "output": f"ray-{case}",
        "scale": {"devices": 1, "nodes": 2, "launcher": "ray"},
    }  # fmt: skip
    (folder / f"ray-{case}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ft(folder, environment, "run", f"ray-{case}.yaml", "train.max_steps=2")
    ft(folder, environment, "resume", f"ray-{case}", "train.max_steps=null")
    assert [line["loss"] for line in steps(folder / f"ray-{case}")] == [line["loss"] for line in steps(ours)]
