"""The gates over what the engines save: a whole checkpoint passes, a changed weight is seen, and the engine trains on
as if nobody had looked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Candidate, Datum, Engine, LossSpec
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.fake_context import TRAIN
from finetooth_kit.losses import weighted_nll
from toy_numpy.making import engine as numpy_engine
from toy_numpy.making import request

pytest.importorskip("finetooth_integrity")
pytest.importorskip("finetooth_torch")
from toy_numpy.torch_twin import TorchSgd, TwinAdapter, TwinLoader

VOCAB, WIDTH = 12, 5
FACTS = request(vocab=VOCAB, width=WIDTH).base.facts
LOSS = LossSpec("nll", weighted_nll)


def torch_engine() -> Any:
    from finetooth_torch.backend import TorchBackend, TorchOptions

    made = request(vocab=VOCAB, width=WIDTH, loader=TwinLoader(VOCAB, WIDTH))
    plan = replace(made.plan, train=replace(made.plan.train, precision="fp64"))
    trains = replace(made.trains, adapter=TwinAdapter())
    made = replace(made, plan=plan, trains=trains, updates=replace(made.updates, optimizer=TorchSgd(0.1)))
    return TorchBackend(TorchOptions(attention="eager"), FakeContext(Path(), installed=True)).engine(made)


def train(engine: Engine, steps: int) -> list[float]:
    """Losses of a few steps."""
    losses = []
    for step in range(steps):
        tokens = [int(t) for t in np.random.default_rng(engine.weights_version).integers(1, VOCAB, size=8)]
        losses.append(engine.forward_backward([Datum.from_tokens(tokens, [1.0] * 8, id=f"row:{step}")], LOSS).loss)
        engine.step()
    return losses  # type: ignore[return-value]


def saved(engine: Engine, folder: Path) -> Path:
    engine.save(folder / "engine")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def change_a_weight(folder: Path) -> str:
    """The sign of one number in each file of tensors, with the engine's own hashes mended; returns the last file."""
    name = ""
    for file in (folder / "engine").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        if len(content) > 8 + int.from_bytes(content[:8], "little"):
            content[-1] ^= 0x80
            file.write_bytes(content)
            name = file.name
    state = folder / "engine/state.json"
    if state.exists():
        about = json.loads(state.read_text())
        for name in about.get("files", {}):
            about["files"][name] = hashlib.sha256((folder / "engine" / name).read_bytes()).hexdigest()
        state.write_text(json.dumps(about))
    seal(folder)
    return name


@pytest.fixture
def gates(tmp_path: Path) -> dict[str, Any]:
    context = FakeContext(tmp_path, facts=FACTS, train=replace(TRAIN, micro_batch_tokens=16))
    entries = entries_of("finetooth_integrity.plugin")
    context.entries = entries
    return {entry.name: context.build("gate", {"name": entry.name, **entry.example}) for entry in entries}


@pytest.mark.parametrize("make", [numpy_engine, torch_engine], ids=["numpy", "torch"])
def test_a_whole_checkpoint_passes_and_training_goes_on(make: Any, gates: dict[str, Any], tmp_path: Path) -> None:
    engine, twin = make(), make()
    train(engine, 3)
    train(twin, 3)
    candidate = Candidate(3, saved(engine, tmp_path / "step-3"), {"loss": 1.0}, engine)
    assert {name: gate.check(candidate) for name, gate in gates.items()} == dict.fromkeys(gates, "")
    assert train(engine, 3) == train(twin, 3)


def test_a_changed_weight_is_seen_and_training_goes_on(gates: dict[str, Any], tmp_path: Path) -> None:
    """Every hash is right: only loading it back tells."""
    engine, twin = torch_engine(), torch_engine()
    train(engine, 3)
    train(twin, 3)
    folder = saved(engine, tmp_path / "step-3")
    assert change_a_weight(folder)
    candidate = Candidate(3, folder, {}, engine)
    assert gates["readback"].check(candidate) == gates["finite"].check(candidate) == ""
    assert "log-probabilities of the probe differ" in gates["probe"].check(candidate)
    assert train(engine, 3) == train(twin, 3)


def test_a_checkpoint_that_does_not_load_is_a_reason_and_training_goes_on(
    gates: dict[str, Any], tmp_path: Path
) -> None:
    engine, twin = torch_engine(), torch_engine()
    train(engine, 3)
    train(twin, 3)
    folder = saved(engine, tmp_path / "step-3")
    (folder / "engine/trained.safetensors").write_bytes(b"torn")
    assert gates["probe"].check(Candidate(3, folder, {}, engine)).startswith("it does not load back: ")
    assert train(engine, 3) == train(twin, 3)
