"""What an engine does between steps, against formulas and transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_hooks import Datum, EngineError
from finetooth_hooks.engine import StepSettings
from finetooth_hooks.protocols import RoleRequest
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.adapters import FullAdapter

DATA = [Datum.from_tokens(list(range(20, 32)), id="first"), Datum.from_tokens(list(range(40, 60)), id="second")]


def stepped(engine: Any, **settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    """How far each weight moved in one step."""
    before = {name: np.array(array) for name, array in engine.weights().items()}
    engine.forward_backward(DATA, WEIGHTED_NLL)
    engine.step(settings=StepSettings(**settings))
    return {name: np.array(array) - before[name] for name, array in engine.weights().items()}


def test_a_step_takes_numbers_of_its_own(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    folder = write(tmp_path)
    plain, double, clipped = (
        stepped(engine_of(folder), **settings) for settings in ({}, {"learning_rate": 0.2}, {"max_grad_norm": 0.5})
    )
    norm = np.sqrt(sum(np.square(moved / 0.1).sum() for moved in plain.values()))
    assert norm > 0.6
    for name, moved in plain.items():
        np.testing.assert_allclose(double[name], 2 * moved, atol=1e-6)
        np.testing.assert_allclose(clipped[name], moved * 0.5 / norm, atol=1e-6)
    engine = engine_of(folder)
    decayed = stepped(engine, optimizer={"weight_decay": 0.5})
    again = stepped(engine_of(folder), optimizer={"weight_decay": 0.0})
    a = next(name for name in decayed if name.endswith("lora_a"))
    first = {name: np.array(array) for name, array in engine_of(folder).weights().items()}
    np.testing.assert_allclose(decayed[a] - again[a], -0.1 * 0.5 * first[a], atol=1e-6)
    for wrong, line in (({"beta": 0.9}, "has no option 'beta'"), ({"momentum": 1.5}, "momentum is 1.5")):
        engine.forward_backward(DATA, WEIGHTED_NLL)
        with pytest.raises(EngineError, match=line):
            engine.step(settings=StepSettings(optimizer=wrong))


def test_hidden_states_of_layers_are_those_of_transformers(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write(tmp_path)
    names = ("hidden:0", "hidden:0.5", "hidden:2")
    found = engine_of(folder, gradient_checkpointing=True).forward(DATA[:1], returns=names).outputs[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(torch.tensor([DATA[0].tokens]), output_hidden_states=True).hidden_states
    for name, wanted in zip(names, states, strict=True):
        wanted = wanted[0].numpy()[: len(found[name])]
        assert np.abs(found[name] - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_a_copy_is_kept_and_follows(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    (tmp_path / "m").mkdir()
    folder = write(tmp_path / "m")
    made = lambda: engine_of(folder, adapter=FullAdapter(), roles={"reference": RoleRequest()})  # noqa: E731
    engine = made()
    first = engine.logprobs(DATA)
    stepped(engine)
    assert all(np.array_equal(*pair) for pair in zip(engine.logprobs(DATA, role="reference"), first, strict=True))
    engine.move_role("reference", 1.0)
    moved = engine.logprobs(DATA, role="reference")
    assert all(np.array_equal(*pair) for pair in zip(moved, engine.logprobs(DATA), strict=True))
    stepped(engine)
    engine.save(tmp_path / "state")
    other = made()
    other.load(tmp_path / "state")
    assert all(np.array_equal(*pair) for pair in zip(other.logprobs(DATA, role="reference"), moved, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(other.logprobs(DATA), engine.logprobs(DATA), strict=True))
