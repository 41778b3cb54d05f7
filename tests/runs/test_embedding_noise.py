"""`train.embedding_noise`: noise in training alone, in every layout, and the same again after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, Engine, LossSpec, PlanError

Make = Callable[..., dict[str, Any]]


def data(seed: int = 0) -> list[Datum]:
    random = np.random.default_rng(seed)
    return [Datum.from_tokens(random.integers(10, 4000, size=length).tolist()) for length in (9, 14, 30)]


def opened(recipe: Make, alpha: float, **sections: Any) -> tuple[Engine, LossSpec]:
    made = recipe(**sections)
    made["train"] = {**made["train"], "embedding_noise": alpha}
    session = finetooth.session(made, data=False)
    return session.engine, session.planned_context.loss("cross_entropy")


def stepped(engine: Engine, loss: LossSpec, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(float(engine.forward_backward(data(step), loss).loss or 0.0))
        engine.step()
    return losses


@pytest.mark.parametrize("sections", [{}, {"backend": {"name": "torch", "packing": False}}], ids=["packed", "padded"])
def test_only_what_trains_gets_noise(recipe: Make, sections: dict[str, Any]) -> None:
    quiet, loss = opened(recipe, 0.0, **sections)
    noisy, _ = opened(recipe, 15.0, **sections)
    for one, other in zip(quiet.logprobs(data()), noisy.logprobs(data()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert quiet.forward(data(), loss, train=False).loss == noisy.forward(data(), loss, train=False).loss
    before, after = (engine.forward_backward(data(), loss).loss for engine in (quiet, noisy))
    assert before != after and before == pytest.approx(after, rel=0.2)


def test_a_resumed_run_draws_the_same_noise(recipe: Make, tmp_path: Path) -> None:
    whole, loss = opened(recipe, 5.0)
    stepped(whole, loss, range(2))
    whole.save(tmp_path / "state")
    expected = stepped(whole, loss, range(2, 4))
    again, _ = opened(recipe, 5.0)
    again.load(tmp_path / "state")
    assert stepped(again, loss, range(2, 4)) == expected
    for one, other in zip(whole.logprobs(data(9)), again.logprobs(data(9)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_backend_without_noise_refuses(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = finetooth.session({**recipe(), "train": {"max_steps": 1, "embedding_noise": 5}}, data=False)
    entry = session.context.catalog.get("backend", "torch").entry
    monkeypatch.setattr(type(entry), "capabilities", property(lambda self: frozenset({"optimizers"})), raising=False)
    with pytest.raises(PlanError, match=r"train\.embedding_noise: engines of finetooth-torch:torch add no noise"):
        session.plan  # noqa: B018
