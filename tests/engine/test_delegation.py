"""Whoever stands in front of an engine, a source, a method, ... loses none of its abilities."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import MethodBase, TrackerBase
from finetooth_hooks.bases import BASES
from finetooth_kit import declared, delegating, engine_checks, run_check
from finetooth_kit.delegating import CONTRACTS
from toy_numpy.making import engine

PLUGINS = Path(__file__).parent / "plugins"
VOCAB = 12


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_declared_method_is_found_in_the_class(kind: str) -> None:
    """As Python looks from 3.12 on when it asks whether an object keeps a protocol: `__getattr__` is not called."""
    wrapped = delegating(kind, object())
    assert declared(kind)
    for name in declared(kind):
        inspect.getattr_static(wrapped, name)
    assert isinstance(wrapped, BASES[kind])
    own = {name for name in vars(BASES[kind]) if not name.startswith("_")}
    assert own <= set(declared(kind)), "a base has what its contract does not declare"


def test_a_wrapped_engine_passes_the_same_checks() -> None:
    """Every check of the kit, skipped ones included: of the toy, the ones that are skipped are the same."""

    def statuses(make: Any) -> dict[str, str]:
        return {check.name: run_check(check).status for check in engine_checks(make, vocab_size=VOCAB)}

    plain = statuses(engine)
    assert statuses(lambda: delegating("engine", engine())) == plain
    skipped = {name for name, status in plain.items() if status != "passed"}
    assert skipped == {"held_adapters_are_sampled_beside_each_other"}  # the toy holds none
    assert set(plain.values()) == {"passed", "skipped"}


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import finetooth
from finetooth_core.models import base_model
from finetooth_core.plugins import builders
from finetooth_hooks import NotFinite
from finetooth_hooks.bases import BASES
from finetooth_kit import delegating
from toy_numpy.engine import NumpyEngine

WRAPPED, CALLS, OWN = set(), [], NumpyEngine.forward_backward

def in_front(built, kind, registered, derived=builders.derived):
    built = derived(built, kind, registered)
    if kind in BASES:
        WRAPPED.add(kind)
    return delegating(kind, built) if kind in BASES else built

def fails_once(self, data, loss, *, normalizer=None):
    CALLS.append(len(data))
    if len(CALLS) == 5:
        raise NotFinite("the fifth step is not finite")
    return OWN(self, data, loss, normalizer=normalizer)

NumpyEngine.forward_backward = fails_once
if sys.argv[3] == "wrapped":
    builders.derived = base_model.derived = in_front
outcome = finetooth.run(json.loads(sys.argv[2]), plugins=["toy_numpy.plugin", "proof_losses.plugin"])
print(json.dumps([outcome.status, sorted(WRAPPED)]))
"""


def run(folder: Path, name: str) -> tuple[list[str], Path]:
    """A run of the toy that goes back once; the kinds that were wrapped, and its folder."""
    recipe = {
        "model": {"name": "toy:1"},
        "data": {"train": str(folder / "sums.jsonl"), "eval": str(folder / "sums.jsonl")},
        "method": "sft",
        "adapter": "delta",
        "backend": "numpy",
        "optimizer": {"name": "plain_adam", "learning_rate": 0.05},
        "schedule": "constant",
        "train": {"epochs": 2, "batch_size": 8, "micro_batch_tokens": 64, "on_bad_step": "rollback"},
        "evaluate": {"evaluators": ["loss"]},
        "checkpoint": {"every": 3, "stores": ["host", "disk"]},
        "trackers": ["jsonl"],
        "output": str(folder / name),
    }
    command = [sys.executable, "-c", PROGRAM, str(PLUGINS), json.dumps(recipe), name]
    given = {**os.environ, "FT_CACHE": str(folder / f"cache-{name}")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=given)
    assert done.returncode == 0, done.stderr
    status, wrapped = json.loads(done.stdout.splitlines()[-1])
    assert status == "done"
    return wrapped, folder / name


@pytest.mark.slow
def test_a_run_of_wrapped_parts_is_the_same_run(tmp_path: Path) -> None:
    """Data that are known and cached, a tracker that takes steps back, an engine that goes back to a copy in memory:
    all of it through objects that only hand on."""
    rows = [{"prompt": f"{i % 5}+1=", "completion": f"{i % 5 + 1}"} for i in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (_, plain), (wrapped, other) = run(tmp_path, "plain"), run(tmp_path, "wrapped")
    assert set(wrapped) == set(BASES) - {
        "environment",
        "exporter",
        "face",
        "quantizer",
        "sampler",
    }  # a server builds faces, ft export exporters; what learns from given rows has no sampler and no environment, and
    # this base is not stored in fewer bits

    def decisions(folder: Path) -> dict[str, object]:
        return {
            one["setting"]: (one["value"], one["reason"])
            for one in json.loads((folder / "plan.json").read_text())["decisions"]
        }

    def steps(folder: Path) -> list[object]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [(line.get("step"), line.get("loss")) for line in lines]

    assert decisions(other) == decisions(plain)
    assert "data.train.sha256" in decisions(plain)
    assert steps(other) == steps(plain) and len(steps(plain)) > 8
    weights = "artifact/adapter_model.safetensors"
    assert (other / weights).read_bytes() == (plain / weights).read_bytes()


class Forgetful(TrackerBase):
    """Has no `resume` of its own."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, run: Any) -> None:
        self.told.append("start")


def test_a_tracker_without_resume_is_started_again() -> None:
    tracker = Forgetful()
    TrackerBase.resume(tracker, None, ())  # type: ignore[arg-type]
    assert tracker.told == ["start"]


def test_facts_may_be_set_on_an_object() -> None:
    """A method's `prepare` sets what it found."""

    class Plain(MethodBase):
        def __init__(self) -> None:
            self.data = (1, 2)  # type: ignore[misc, assignment]

    assert Plain().data == (1, 2)
    assert (MethodBase().data, dict(MethodBase().roles), MethodBase().capabilities) == ((), {}, frozenset())
