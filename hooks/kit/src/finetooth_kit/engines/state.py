"""Checks of `save`, `load` and `export`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import UserError

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase, all_close
from finetooth_kit.losses import CENTRED, WEIGHTED_NLL

_PICKLED = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy"}


def _no_pickle(folder: Path, called: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    expect(files, called, "no file", "at least one")
    bad = [path.name for path in files if path.suffix in _PICKLED]
    expect(not bad, called, bad, "safetensors and JSON, no pickle")
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def _train(engine: Engine, case: EngineCase, steps: range) -> list[float]:
    seen = []
    for step in steps:
        data = case.data(seed=step)
        result = engine.forward_backward(data, CENTRED if step % 2 else WEIGHTED_NLL)
        stepped = engine.step(metrics={"loss": result.loss or 0.0})
        seen += [result.loss or 0.0, result.metrics.get("running", 0.0)]
        seen += [stepped.grad_norm, stepped.learning_rate, float(stepped.step)]
    return seen


def _same_bits(case: EngineCase, a: Engine, b: Engine, called: str) -> None:
    data = case.data()
    for x, y in zip(a.logprobs(data), b.logprobs(data), strict=True):
        expect(
            np.array_equal(x, y), called, f"differs by {np.abs(x - y).max()}", "bit for bit the uninterrupted engine"
        )


def restored_engine_continues_exactly(case: EngineCase) -> None:
    """Save after two steps, load into a fresh engine, train on: the same bits as without the interruption."""
    engine = case.engine("full_state")
    engine.set_total_steps(6)
    _train(engine, case, range(2))
    engine.save(case.folder / "state")
    _no_pickle(case.folder / "state", "files written by save(path)")
    other = case.engine()
    other.set_total_steps(6)
    other.load(case.folder / "state")
    expect(other.weights_version == 2, "weights_version after load", other.weights_version, "2")
    _same_bits(case, other, engine, "logprobs after load(path)")
    wanted, got = (_train(each, case, range(2, 5)) for each in (engine, other))
    expect(got == wanted, "losses, norms and rates after load(path)", got, f"{wanted}")
    _same_bits(case, other, engine, "logprobs after three further steps")


def accumulated_gradients_are_saved(case: EngineCase) -> None:
    """Save between forward_backward and step: the restored engine steps with the same gradients."""
    engine, data = case.engine("full_state"), case.data()
    _train(engine, case, range(1))
    engine.forward_backward(data, WEIGHTED_NLL)
    engine.save(case.folder / "state")
    other = case.engine()
    other.load(case.folder / "state")
    for each in (engine, other):
        each.forward_backward(data[:2], CENTRED)
    norms = [each.step().grad_norm for each in (engine, other)]
    expect(norms[0] == norms[1], "grad_norm of a step across save and load", norms[1], f"{norms[0]}")
    _same_bits(case, other, engine, "logprobs after a step across save and load")


def a_snapshot_stays_what_it_was(case: EngineCase) -> None:
    """A snapshot taken between forward_backward and step does not change while the engine continues. Rolled back twice
    and read from disk once, the engine trains on with the same bits."""
    engine, data = case.engine("full_state", "snapshots"), case.data()
    engine.set_total_steps(6)
    _train(engine, case, range(2))
    engine.forward_backward(data, WEIGHTED_NLL)
    snapshot = engine.snapshot()
    expect(snapshot.nbytes > 0, "snapshot().nbytes", snapshot.nbytes, "more than 0")
    wanted: list[float] = []
    scores = engine.logprobs(data)
    for turn in range(3):
        engine.forward_backward(data[:2], CENTRED)
        ended = [engine.step().grad_norm, *_train(engine, case, range(2, 4))]
        if turn == 2:
            expect(ended == wanted, "losses after a second rollback", ended, f"{wanted}")
            break
        if turn == 1:
            expect(ended == wanted, "losses after rollback(snapshot)", ended, f"{wanted}")
        wanted = ended
        engine.rollback(snapshot)
        for x, y in zip(engine.logprobs(data), scores, strict=True):
            expect(np.array_equal(x, y), "logprobs after rollback(snapshot)", "other bits", "those it was made with")
    snapshot.to_host().save(case.folder / "snapshot")
    _no_pickle(case.folder / "snapshot", "files written by snapshot.save(path)")
    other = case.engine()
    other.set_total_steps(6)
    other.load(case.folder / "snapshot")
    other.forward_backward(data[:2], CENTRED)
    ended = [other.step().grad_norm, *_train(other, case, range(2, 4))]
    expect(ended == wanted, "losses after load of a saved snapshot", ended, f"{wanted}")


def load_drops_what_was_there(case: EngineCase) -> None:
    """An engine that has trained otherwise and loads a state is as good as a fresh one."""
    engine = case.engine("full_state")
    _train(engine, case, range(2))
    engine.save(case.folder / "state")
    other = case.engine()
    _train(other, case, range(3, 6))
    other.forward_backward(case.data(seed=9), WEIGHTED_NLL)
    other.load(case.folder / "state")
    wanted, got = (_train(each, case, range(2, 4)) for each in (engine, other))
    expect(got == wanted, "losses, norms and rates of a used engine after load(path)", got, f"{wanted}")
    _same_bits(case, other, engine, "logprobs of a used engine after load(path) and two steps")


def foreign_state_is_refused(case: EngineCase) -> None:
    """A folder that holds no state, or does not exist, is a UserError."""
    engine = case.engine()
    empty = case.folder / "empty"
    empty.mkdir()
    for path in (empty, case.folder / "nowhere"):
        try:
            engine.load(path)
        except UserError:
            continue
        fail(f"load({path.name!r}, which is not a state)", "no error", "a UserError")


def export_writes_an_artifact(case: EngineCase) -> None:
    """`export` writes files that others can load, without pickle, and leaves the engine as it was."""
    engine = case.engine()
    _train(engine, case, range(1))
    before = engine.logprobs(case.data())
    engine.export(case.folder / "artifact")
    _no_pickle(case.folder / "artifact", "files written by export(path)")
    for a, b in zip(before, engine.logprobs(case.data()), strict=True):
        expect(np.array_equal(a, b), "logprobs after export(path)", f"differ by {np.abs(a - b).max()}", "as before")


def artifact_is_taken_back(case: EngineCase) -> None:
    """A fresh engine that restores an artifact scores as the one that exported it; no artifact is a UserError."""
    engine, data = case.engine(), case.data()
    _train(engine, case, range(2))
    engine.export(case.folder / "artifact")
    other = case.engine()
    other.restore(case.folder / "artifact")
    all_close(engine, "logprobs after restore(path)", other.logprobs(data), engine.logprobs(data), "the exporter's")
    (case.folder / "empty").mkdir()
    try:
        other.restore(case.folder / "empty")
    except UserError:
        return
    fail("restore(an empty folder)", "no error", "a UserError")


CHECKS = (
    restored_engine_continues_exactly,
    accumulated_gradients_are_saved,
    load_drops_what_was_there,
    a_snapshot_stays_what_it_was,
    foreign_state_is_refused,
    export_writes_an_artifact,
    artifact_is_taken_back,
)
