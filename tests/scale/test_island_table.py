"""What an island may be trained by: four ranks in two islands, held against two ranks that are an island each."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_islands import LONG, run, weights
from test_two_ranks import RECIPE, folder, ft, steps  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: make scale-test"
)
DIVIDES_ALL = "no group of them has a whole pseudo-gradient of its own"
TABLE = [
    pytest.param("ddp", None, id="DDP: yes"),
    pytest.param({"name": "fsdp", "replicas": 2}, None, id="FSDP hybrid shard: yes"),
    pytest.param("fsdp", DIVIDES_ALL, id="FSDP full shard: no"),
    pytest.param({"name": "deepspeed", "stage": 1}, None, id="ZeRO-1: yes", marks=needs_deepspeed),
    pytest.param({"name": "deepspeed", "stage": 2}, None, id="ZeRO-2: yes", marks=needs_deepspeed),
    pytest.param("zero3", DIVIDES_ALL, id="ZeRO-3: no"),
]


def scale(devices: int, within: Any) -> dict[str, Any]:
    strategy = {"name": "diloco", "num_islands": 2, "inner_steps": 2, "within": within}
    return {"devices": devices, "strategy": strategy}


@pytest.mark.parametrize(("within", "reason"), TABLE)
def test_diloco_with(folder: Path, within: Any, reason: str | None) -> None:  # noqa: F811
    """Five steps and three exchanges; an island has no rows in some steps. Refused ones start no rank."""
    if reason is not None:
        recipe = {**RECIPE, "output": "refused", "scale": scale(4, within)}
        (folder / "refused.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        done = ft(folder, "run", "refused.yaml")
        assert done.returncode == 2 and reason in done.stderr, done.stdout + done.stderr
        assert not (folder / "refused").exists()
        return
    if not (folder / "each").exists():
        run(folder, "each", scale(2, "ddp"), **LONG)
    name = within if isinstance(within, str) else "-".join(map(str, within.values()))
    made = run(folder, name, scale(4, within), **LONG)
    assert len(steps(made)) == 5
    ours = weights(made)
    for key, value in weights(folder / "each").items():
        assert np.linalg.norm(ours[key] - value) <= 1e-5 * np.linalg.norm(value), key
