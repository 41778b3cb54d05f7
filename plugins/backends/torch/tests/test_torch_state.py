"""Save and load: an engine that is restored continues bit for bit; what does not belong is refused and changes
nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import LossSpec, Sampling, UserError
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult
from safetensors.numpy import load_file


def running(outputs: Any, data: Any, state: Any) -> LossResult:
    each = xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0), axis=1)
    mean = 0.9 * state.get("mean", 0.0) + 0.1 * xp.item(xp.mean(xp.stop_gradient(each)))
    profile = 0.5 * state["profile"] + 0.5 if "profile" in state else xp.ones_like(xp.stop_gradient(each[:2]))
    total = xp.sum(xp.square(each - mean)) * xp.mean(profile)
    return LossResult({"off": Contribution(total, per="sequences")}, state={"mean": mean, "profile": profile})


RUNNING = LossSpec("test:running", running, together="step")
KINDS = {
    "adamw": (torch.optim.AdamW, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "plain": (torch.optim.SGD, {}),
    "adafactor": (torch.optim.Adafactor, {}),
}


def train(kit: SimpleNamespace, engine: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        for half in range(2):
            losses.append(engine.forward_backward(kit.data(4, seed=10 * step + half), RUNNING).loss)
        engine.step()
    return losses


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.slow)])


@pytest.mark.parametrize("kind", sorted(KINDS))
@PRECISIONS
def test_a_restored_engine_continues_bit_for_bit(
    kit: SimpleNamespace, tmp_path: Path, kind: str, precision: str
) -> None:
    optimizer, options = KINDS[kind]

    def make() -> Any:
        return kit.engine(
            precision=precision,
            optimizer=kit.optimizer(optimizer, 1e-3, options),
            adapter=kit.adapter(dropout=0.2),
            max_grad_norm=1.0,
            micro_batch_tokens=40,
        )

    engine = make()
    train(kit, engine, range(2))
    engine.forward_backward(kit.data(4, seed=77), RUNNING)  # saved between forward_backward and step
    engine.save(tmp_path / "state")
    restored = make()
    train(kit, restored, range(5, 6))  # whatever it did before does not matter
    restored.load(tmp_path / "state")
    assert restored.weights_version == 2
    assert len(restored._request.updates.schedule.seen) == 2
    ends = []
    for one in (engine, restored):
        one.forward_backward(kit.data(4, seed=78), RUNNING)
        stepped = one.step()
        losses = train(kit, one, range(3, 5))
        (completion,) = one.generate([[5, 6]], Sampling(max_tokens=6, stop_ids=()))[0]
        ends.append((stepped, losses, completion, kit.weights(one), one._loss_states))
    for a, b in zip(ends[0][:3], ends[1][:3], strict=True):
        assert repr(a) == repr(b)  # a norm may be NaN, in fp16
    assert all(np.array_equal(ends[0][3][name], ends[1][3][name]) for name in ends[0][3])
    assert ends[0][4]["test:running"]["mean"] == ends[1][4]["test:running"]["mean"]
    assert np.array_equal(ends[0][4]["test:running"]["profile"], ends[1][4]["test:running"]["profile"])


@pytest.mark.parametrize("kind", sorted(KINDS))
@PRECISIONS
def test_a_snapshot_brings_everything_back(kit: SimpleNamespace, tmp_path: Path, kind: str, precision: str) -> None:
    """Rolled back twice the engine does the same thing twice, and the snapshot on disk is what `save` wrote."""
    optimizer, options = KINDS[kind]
    engine = kit.engine(
        precision=precision, optimizer=kit.optimizer(optimizer, 1e-3, options), adapter=kit.adapter(dropout=0.2)
    )
    train(kit, engine, range(2))
    engine.forward_backward(kit.data(4, seed=77), RUNNING)
    snapshot = engine.snapshot()
    engine.save(tmp_path / "saved")
    ends = []
    for _ in range(2):
        engine.step()
        ends.append((train(kit, engine, range(3, 5)), kit.weights(engine)))
        engine.rollback(snapshot)
    assert ends[0][0] == ends[1][0]
    assert all(np.array_equal(ends[0][1][name], ends[1][1][name]) for name in ends[0][1])
    snapshot.to_host().save(tmp_path / "kept")
    for file in sorted((tmp_path / "saved").iterdir()):
        assert (tmp_path / "kept" / file.name).read_bytes() == file.read_bytes()
    assert snapshot.nbytes == sum(tensor.nbytes for f in snapshot.files.values() for tensor in f.values()) > 0


def test_only_safetensors_and_json_and_nothing_left_beside(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine = kit.engine()
    engine.forward_backward(kit.data(), kit.nll)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mine.txt").write_text("stays", encoding="utf-8")
    engine.save(tmp_path / "state")
    files = ("gradients", "optimizer", "random", "trained")
    names = {"mine.txt", "state.json", *(f"{name}.safetensors" for name in files)}
    assert {file.name for file in (tmp_path / "state").iterdir()} == names
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    engine.step()
    engine.save(tmp_path / "state")
    assert {file.name for file in (tmp_path / "state").iterdir()} == names - {"gradients.safetensors"}
    saved = load_file(tmp_path / "state" / "trained.safetensors")
    assert all(np.array_equal(saved[name], value) for name, value in kit.weights(engine).items())


def test_a_failed_save_leaves_the_old_state(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = kit.engine()
    engine.save(tmp_path / "state")
    before = {file.name: file.read_bytes() for file in (tmp_path / "state").iterdir()}
    train(kit, engine, range(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("json.dumps", full)
        with pytest.raises(OSError, match="No space"):
            engine.save(tmp_path / "state")
    assert {file.name: file.read_bytes() for file in (tmp_path / "state").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"revision": "r2"}}, "revision 'r1'"),
        ({"model": {"parameters": 11_000}}, "parameters"),
        ({"precision": "bf16"}, "train.precision=fp32"),
        ({"rank": 2}, "not a state of this adapter"),
        ({"targets": ("q_proj",)}, "not a state of this adapter"),
        ({"momentum": True}, "another optimizer"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(
    kit: SimpleNamespace, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    engine = kit.engine()
    train(kit, engine, range(1))
    engine.save(tmp_path / "state")
    change = dict(change)
    adapter = kit.adapter(**{k: change.pop(k) for k in ("rank", "targets") if k in change})
    if change.pop("momentum", False):
        change["optimizer"] = kit.optimizer(torch.optim.SGD, 0.1, {"momentum": 0.9})
    other = kit.engine(adapter=adapter, **change)
    before = kit.weights(other)
    with pytest.raises(UserError, match=words):
        other.load(tmp_path / "state")
    assert all(np.array_equal(before[name], value) for name, value in kit.weights(other).items())


def test_missing_torn_and_newer_states_are_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine = kit.engine()
    with pytest.raises(UserError, match="does not hold a saved engine state"):
        engine.load(tmp_path)
    engine.save(tmp_path / "state")
    weights = tmp_path / "state" / "trained.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(UserError, match="not what was saved"):
        engine.load(tmp_path / "state")
    weights.write_bytes(content)
    state = json.loads((tmp_path / "state" / "state.json").read_text(encoding="utf-8"))
    (tmp_path / "state" / "state.json").write_text(json.dumps({**state, "format": 9}), encoding="utf-8")
    with pytest.raises(UserError, match="state format 9"):
        engine.load(tmp_path / "state")


@pytest.mark.parametrize("full", [False, True])
def test_export_writes_what_trained_and_restore_takes_it_back(kit: SimpleNamespace, tmp_path: Path, full: bool) -> None:
    """An adapter's parameters go out in the fp32 it made them in, whole weights in the precision of the run."""
    engine = kit.engine(precision="bf16", adapter=kit.adapter(full=full))
    train(kit, engine, range(2))
    computed = {name: p.detach().clone() for name, p in engine._parts.network.model.named_parameters()}
    engine.export(tmp_path / "artifact")
    kept = load_file(tmp_path / "artifact" / "trained.safetensors") if not full else None
    if kept is not None:
        masters = kit.weights(engine)
        assert all(value.dtype == np.float32 for value in kept.values())
        assert all(np.array_equal(kept[name], masters[name].astype(np.float32)) for name in masters)
    assert (tmp_path / "artifact" / "letters.txt").exists()
    for name, parameter in engine._parts.network.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, computed[name])
    other = kit.engine(precision="bf16", adapter=kit.adapter(full=full))
    other.restore(tmp_path / "artifact")
    data = kit.data()
    assert all(np.array_equal(a, b) for a, b in zip(engine.logprobs(data), other.logprobs(data), strict=True))
