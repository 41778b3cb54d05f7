"""A compiled update is the one that is not compiled: optimizers, options of a step, resuming, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
from finetooth_hooks import Datum, PlanError
from finetooth_hooks.engine import StepSettings
from finetooth_kit import FakeContext
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx import optimizers
from finetooth_mlx.adapters import FullAdapter

DATA = [Datum.from_tokens(list(range(20, 32)), id="first"), Datum.from_tokens(list(range(40, 60)), id="second")]
OPTIMIZERS = ("adamw", "sgd", "lion", "adafactor", "muon")


@pytest.fixture
def made(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> Callable[..., Any]:
    folder = write(tmp_path)

    def engine(name: str, *, compiled: bool, **changes: Any) -> Any:
        options: Any = getattr(optimizers, {"adamw": "AdamW"}.get(name, name.capitalize()) + "Options")
        settings = options(learning_rate=1e-3, weight_decay=0.1, **changes)
        optimizer = getattr(optimizers, f"build_{name}")(settings, FakeContext(tmp_path))
        return engine_of(folder, adapter=FullAdapter(), optimizer=optimizer, options={"compile": compiled})

    return engine


def steps(engine: Any, count: int, **settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    for _ in range(count):
        engine.forward_backward(DATA, WEIGHTED_NLL)
        engine.step(settings=StepSettings(**settings))
    return {name: np.array(array) for name, array in engine.weights().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_are_those_of_a_plain_update(made: Callable[..., Any], name: str) -> None:
    first = steps(made(name, compiled=False), 0)
    plain, compiled = (steps(made(name, compiled=compiled), 3) for compiled in (False, True))
    for weight, wanted in plain.items():
        moved = np.abs(wanted - first[weight]).max()
        assert moved > 0
        # of lion and Adam's first steps a gradient next to 0 decides by its sign, which roundings change
        assert np.abs(compiled[weight] - wanted).max() < 2e-3 * moved or np.mean(compiled[weight] != wanted) < 0.01


def test_options_of_a_step_count_for_that_step(made: Callable[..., Any]) -> None:
    plain, compiled = made("adamw", compiled=False), made("adamw", compiled=True)
    for settings in ({}, {"optimizer": {"weight_decay": 0.5}}, {"learning_rate": 0.1}, {}):
        wanted, found = steps(plain, 1, **settings), steps(compiled, 1, **settings)
        for weight in wanted:
            np.testing.assert_allclose(found[weight], wanted[weight], rtol=2e-4, atol=2e-5)


def test_a_resumed_run_takes_the_same_steps_bit_for_bit(made: Callable[..., Any], tmp_path: Path) -> None:
    whole = made("adamw", compiled=True)
    steps(whole, 2)
    whole.save(tmp_path / "state")
    wanted = steps(whole, 2)
    resumed = made("adamw", compiled=True)
    resumed.load(tmp_path / "state")
    found = steps(resumed, 2)
    assert all(np.array_equal(found[name], array) for name, array in wanted.items())


def test_other_threads_may_step(made: Callable[..., Any]) -> None:
    engine, alone = made("adamw", compiled=True), made("adamw", compiled=True)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        one.submit(steps, engine, 1).result()
        found = another.submit(steps, engine, 1).result()
    wanted = steps(alone, 2)
    assert all(np.array_equal(found[name], array) for name, array in wanted.items())


def test_a_trace_that_fails_leaves_the_state_as_it_was(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, alone = made("sgd", compiled=True, momentum=0.5), made("sgd", compiled=True, momentum=0.5)
    inner = engine._update.optimizer
    own = type(inner).apply_gradients

    def failing(self: Any, *given: Any) -> Any:
        own(self, *given)
        raise RuntimeError("[metal] Command buffer execution failed")

    monkeypatch.setattr(type(inner), "apply_gradients", failing)
    with pytest.raises(RuntimeError, match="Command buffer"):
        steps(engine, 1)
    monkeypatch.undo()
    engine.zero_grad()
    found, wanted = steps(engine, 2), steps(alone, 2)
    assert all(np.array_equal(found[name], array) for name, array in wanted.items())


def test_a_machine_without_a_compiler_is_refused(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(function: Any) -> Any:
        raise RuntimeError("[Compile::eval_cpu] Failed to compile function")

    monkeypatch.setattr(mx, "compile", refused)
    with pytest.raises(PlanError, match=r"backend\.compile=true: MLX cannot compile here: .*Failed to compile"):
        made("sgd", compiled=True)
