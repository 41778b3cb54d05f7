"""Roles that are models of their own: a copy of what trains, or another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import LossSpec, PlanError, UserError
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult
from finetooth_hooks.protocols import ModelInfo, RoleRequest
from finetooth_toolbox.combined_losses import with_known_role

ADAPTERS = pytest.mark.parametrize("full", [False, True], ids=["low-rank", "full"])
COPY = {"reference": RoleRequest()}


def apart(outputs: Any, data: Any, state: Any) -> LossResult:
    """Moves the policy away from what the reference says."""
    difference = xp.where(data.mask, outputs["logprobs"] - outputs["logprobs@reference"], 0.0)
    return LossResult({"apart": Contribution(xp.sum(xp.square(difference - 1.0)))})


APART = LossSpec("test:apart", apart, frozenset({"logprobs", "logprobs@reference"}))


def moved(kit: SimpleNamespace, engine: Any, steps: int = 3) -> None:
    for step in range(steps):
        engine.forward_backward(kit.data(5, seed=step), APART)
        engine.step()


def same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@ADAPTERS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_says_what_the_policy_said(kit: SimpleNamespace, full: bool, precision: str) -> None:
    engine = kit.engine(adapter=kit.adapter(full=full), roles=COPY, precision=precision)
    assert {"roles", "reference"} <= engine.capabilities
    data = kit.data()
    start = engine.logprobs(data)
    moved(kit, engine)
    same(engine.logprobs(data, role="reference"), start)
    assert max(float(np.abs(a - b).max()) for a, b in zip(engine.logprobs(data), start, strict=True)) > 1e-2


@ADAPTERS
def test_a_copy_changes_no_gradient(kit: SimpleNamespace, full: bool) -> None:
    """With the same reference as the adapter switched off, or as numbers given, the gradients are the same."""
    adapter = kit.adapter(full=full, zero=True)
    held = kit.engine(adapter=adapter, roles=COPY, optimizer=kit.sgd())
    moved(kit, held, 2)
    plain = kit.engine(adapter=kit.adapter(full=full, zero=True), optimizer=kit.sgd())
    data = kit.data(5, seed=9)
    scores = held.logprobs(data, role="reference")
    known = [
        replace(datum, fields={**datum.fields, "logprobs@reference": values})
        for datum, values in zip(data, scores, strict=True)
    ]
    with torch.no_grad():
        for (_, mine), (_, theirs) in zip(plain._parts.parameters.named(), held._parts.parameters.named(), strict=True):
            mine.copy_(theirs)
    held.forward_backward(data, APART)
    plain.forward_backward(known, with_known_role(APART, "reference"))
    assert kit.relative(kit.gradients(held), kit.gradients(plain)) < 1e-5


@ADAPTERS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_moves_towards_the_policy(kit: SimpleNamespace, full: bool, precision: str) -> None:
    engine = kit.engine(adapter=kit.adapter(full=full), roles=COPY, precision=precision)
    before = kit.weights(engine)
    moved(kit, engine)
    after = kit.weights(engine)
    engine.move_role("reference", 0.25)
    held = engine._parts.network.holders["reference"].named()
    for name in before:
        wanted = 0.25 * after[name] + 0.75 * before[name]
        np.testing.assert_allclose(held[name].double().numpy(), wanted, rtol=1e-6, atol=1e-7)
    engine.move_role("reference", 1.0)
    same(engine.logprobs(kit.data(), role="reference"), engine.logprobs(kit.data()))


@ADAPTERS
def test_a_copy_is_part_of_the_state(kit: SimpleNamespace, tmp_path: Path, full: bool) -> None:
    def make(**options: Any) -> Any:
        return kit.engine(adapter=kit.adapter(full=full), **options)

    engine = make(roles=COPY)
    moved(kit, engine)
    engine.move_role("reference", 0.5)
    engine.save(tmp_path / "state")
    other = make(roles=COPY)
    other.load(tmp_path / "state")
    for role in ("policy", "reference"):
        same(other.logprobs(kit.data(), role=role), engine.logprobs(kit.data(), role=role))
    moved(kit, engine), moved(kit, other)
    same(other.logprobs(kit.data()), engine.logprobs(kit.data()))
    with pytest.raises(UserError, match="with a copy of the policy as 'reference'"):
        make().load(tmp_path / "state")


def test_another_model_is_a_role(kit: SimpleNamespace) -> None:
    """Its numbers are those of an engine of its own, and it never trains."""
    config = kit.config(hidden_size=32, num_hidden_layers=3)
    info = ModelInfo("other", "test:other", "llama", {}, 20_000, 0)
    role = {"reference": RoleRequest(info, kit.facts(config), kit.loader(config))}
    engine = kit.engine(adapter=kit.adapter(full=True), roles=role, micro_batch_tokens=50)
    alone = kit.engine(config=config, adapter=kit.adapter(zero=True))
    wanted = alone.logprobs(kit.data())
    for _ in range(2):
        for mine, theirs in zip(engine.logprobs(kit.data(), role="reference"), wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        moved(kit, engine)
    with pytest.raises(PlanError, match="'reference' is not a copy"):
        engine.move_role("reference", 0.5)


@pytest.mark.parametrize("forward_only", [False, True], ids=["backward", "scored"])
def test_a_copy_drops_nothing_out_while_the_policy_does(kit: SimpleNamespace, forward_only: bool) -> None:
    engine = kit.engine(adapter=kit.adapter(dropout=0.5), roles=COPY)
    data, seen = kit.data(1), {}

    def look(outputs: Any, data: Any, state: Any) -> LossResult:
        seen.update({name: xp.to_numpy(values) for name, values in outputs.items()})
        return apart(outputs, data, state)

    spec = LossSpec("test:look", look, frozenset({"logprobs", "logprobs@reference"}))
    if forward_only:
        engine.backward(engine.forward(data, spec).handle, None)
    else:
        engine.forward_backward(data, spec)
    (evaluated,) = engine.logprobs(data)
    n = len(evaluated)
    np.testing.assert_allclose(seen["logprobs@reference"][0, :n], evaluated, atol=1e-6)
    assert not np.allclose(seen["logprobs"][0, :n], evaluated, atol=1e-3)
