"""Quantisation-aware training by use: what is trained is what is written and what is read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, PlanError

Recipe = dict[str, Any]


@pytest.mark.parametrize("form", ["int8", "int4", "mxfp4"])
def test_what_is_trained_is_what_is_read_back(
    recipe: Callable[..., Recipe], losses: Callable[[Path], list[float]], tmp_path: Path, form: str
) -> None:
    train = {"epochs": 6, "batch_size": 8, "precision": "fp32"}
    said: list[str] = []
    session = finetooth.session(recipe(adapter={"name": "qat", "format": form}, train=train))
    session.say = said.append
    session.run()
    seen = losses(tmp_path / "run")
    assert np.mean(seen[-3:]) < seen[0] - 0.3
    datum = Datum.from_tokens(list(range(20, 60)))
    wanted = session.engine.logprobs([datum])[0]
    for quantization in (None, form):  # as plain numbers, and stored in the format
        changed = recipe(model=str(tmp_path / "run"), quantization=quantization, output=str(tmp_path / "next"))
        found = finetooth.session({**changed, "train": {"precision": "fp32"}}).engine.logprobs([datum])[0]
        np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.slow
def test_it_is_better_than_rounding_afterwards(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Four bits in one group a row cost a tiny model much; trained for them it loses less."""
    tasks = {"name": "tasks", "task": "family", "count": 24, "seed": 5}
    data = {"train": tasks, "eval": tasks, "renderer": "chatml"}
    train = {"epochs": 8, "batch_size": 8, "precision": "fp32"}
    form = {"name": "int4", "group": 128, "symmetric": True}
    found = {}
    for name, adapter in (("afterwards", "full"), ("aware", {"name": "qat", "format": form})):
        folder = tmp_path / name
        finetooth.session(recipe(adapter=adapter, data=data, train=train, output=str(folder))).run()
        stored = recipe(model=str(folder), quantization=form, data=data, output=str(tmp_path / f"{name}-stored"))
        stored |= {"train": {"max_steps": 1, "batch_size": 8, "precision": "fp32"},
                   "evaluate": {"evaluators": ["loss"], "every": 1, "before": True}}  # fmt: skip
        session = finetooth.session(stored)
        session.run()
        found[name] = session.evaluations[0].metrics["loss"]
    assert found["aware"] < found["afterwards"]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"adapter": "qat", "quantization": "int8"}, "and adapter: finetooth-qat:qat needs its weights as plain"),
        ({"adapter": {"name": "qat", "format": "gptq"}}, "gptq of 4 bits .* qat cannot train for it"),
    ],
)
def test_what_cannot_move_is_not_trained_for(recipe: Callable[..., Recipe], sections: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        _ = finetooth.session(recipe(**sections)).plan
