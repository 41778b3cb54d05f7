"""What ranks that divide a model save is whole at one of them, in host memory, and no other keeps it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import CASES, RECIPE, check_alike, folder, ft, trained  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
MISSING = importlib.util.find_spec("deepspeed") is None
ZERO3 = pytest.param("zero3", marks=pytest.mark.skipif(MISSING, reason="needs deepspeed: make scale-test"))
KEPT = """
import json, os
from pathlib import Path
from finetooth_hooks import hookimpl
from finetooth_torch import engine
from finetooth_torch.updates.sharded_parameters import ShardedParameters

STATES, state_of = [], engine.state_of


def noted(*given, **options):
    state = state_of(*given, **options)
    tensors = [of for name, of_file in state.files.items() if name != "random" for of in of_file.values()]
    STATES.append(sum(of.nbytes for of in tensors if not of.is_meta))
    return state


def gathers(self):
    raise AssertionError("the whole model is gathered on the device")


engine.state_of = noted
ShardedParameters.gathered = gathers


@hookimpl
def ft_checkpoint_saved(run, path):
    files = sum(file.stat().st_size for file in path.rglob("*.safetensors") if file.name != "random.safetensors")
    Path(f"kept-{run.folder.name}-{os.environ['RANK']}-{path.name}").write_text(json.dumps([*STATES[-1:], files]))
"""
LONG: dict[str, Any] = {**CASES["full"], "train": {**RECIPE["train"], "epochs": 4, "max_steps": 4}}
FROZEN = {"adapter": {"name": "freeze", "layers": 1}}


@pytest.mark.parametrize("adapter", ["full", "freeze"])
@pytest.mark.parametrize("strategy", ["fsdp", ZERO3])
def test_one_rank_keeps_what_is_saved(folder: Path, strategy: str, adapter: str) -> None:  # noqa: F811
    """No part of the base is gathered on the device for it, and the second rank writes next to nothing. All of the
    state resumes: two steps and two more are four, to the bit."""
    (folder / "kept.py").write_text(KEPT, encoding="utf-8")
    changes = {**LONG, **(FROZEN if adapter == "freeze" else {}), "plugins": ["./kept.py"], "checkpoint": {"every": 2}}
    name = f"kept-{strategy}-{adapter}"
    whole = trained(folder, f"{name}-whole", 2, strategy, **changes)
    run = trained(folder, name, 2, strategy, **{**changes, "train": {**LONG["train"], "max_steps": 2}})
    trains = sum(of.size for of in load_file(run / "checkpoints/step-2/engine/trained.safetensors").values())
    for place in ("step-2", "artifact"):
        of_ranks = [json.loads((folder / f"kept-{name}-{rank}-{place}").read_text()) for rank in (0, 1)]
        assert of_ranks[0][0] >= 12 * trains and of_ranks[0][1] > 0  # weights and two moments in fp32
        assert of_ranks[1][0] < 1000 and of_ranks[1][1] < 10_000
    done = ft(folder, "resume", str(run), "train.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((whole / "artifact").glob("*.safetensors"))
    assert files
    for file in files:
        again = load_file(run / "artifact" / file.name)
        assert all(np.array_equal(again[key], value) for key, value in load_file(file).items())
    alone = {**changes, "plugins": [], "checkpoint": {}}
    check_alike(trained(folder, f"{adapter}-alone", 1, **alone), whole)


@pytest.mark.parametrize("strategy", ["fsdp", "replicas of tensor", ZERO3])
def test_the_best_checkpoint_is_loaded_back_by_all_ranks(folder: Path, strategy: str) -> None:  # noqa: F811
    """Weights only get worse, so that the best is that of the first step. A rank that kept none of it gets its part."""
    changes = {
        **LONG, "optimizer": {"name": "adamw", "learning_rate": 0.3}, "schedule": "constant",
        "evaluate": {"every": 1}, "checkpoint": {"every": 1, "select_on": "eval/loss"},
    }  # fmt: skip
    ranks, name = 4 if strategy.startswith("replicas") else 2, strategy.replace(" ", "-")
    runs = [trained(folder, "best-alone", 1, **changes), trained(folder, f"best-{name}", ranks, strategy, **changes)]
    assert [json.loads((run / "result.json").read_text())["artifact_step"] for run in runs] == [1, 1]
    for file in (runs[0] / "artifact").glob("*.safetensors"):
        ours = load_file(runs[1] / "artifact" / file.name)
        for key, value in load_file(file).items():
            assert np.linalg.norm(ours[key] - value) <= 2e-5 * np.linalg.norm(value), key
