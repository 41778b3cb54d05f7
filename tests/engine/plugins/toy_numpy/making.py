"""Makes engines of the toy without a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks.protocols import BasePart, EngineRequest, Optimizer, PlacePart, TextPart, TrainsPart, UpdatesPart
from finetooth_kit import ByteTokenizer, plan_of

from toy_numpy.engine import NumpyEngine
from toy_numpy.model import Toy, new_head
from toy_numpy.optimizers import Sgd
from toy_numpy.parts import DeltaAdapter, Factory, NumpyHardware, ToyLoader, facts_of


class Constant:
    """A schedule that never changes."""

    def factor(self, step: int, total: int | None) -> float:
        return 1.0

    def observe(self, metrics: Mapping[str, float]) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


def request(
    *, vocab: int = 12, width: int = 5, budget: int = 16, optimizer: Optimizer | None = None, loader: Any = None
) -> EngineRequest:
    """What an engine of the toy is made of."""
    plan = plan_of()
    plan = replace(plan, train=replace(plan.train, micro_batch_tokens=budget, max_grad_norm=0.0))
    loader = loader or ToyLoader(vocab, width)
    info = loader.describe("toy:3")
    facts = facts_of({"vocab_size": vocab, "hidden_size": width})
    adapter = DeltaAdapter()
    trained = adapter.trained_parameters(facts, info.parameters)
    return EngineRequest(
        plan=plan,
        base=BasePart(info, facts, loader),
        trains=TrainsPart(adapter, trained, can_disable=True, base_frozen=True),
        updates=UpdatesPart(optimizer or Factory(0.1, Sgd), Constant()),
        text=TextPart(ByteTokenizer()),
        place=PlacePart(NumpyHardware().facts()),
    )


def engine(**sizes: Any) -> NumpyEngine:
    """A fresh engine of the same toy."""
    made = request(**sizes)
    base = made.base.loader.load("toy:3", framework="numpy", precision="fp64", device="cpu")
    assert isinstance(base, Toy)
    model = made.trains.adapter.apply(base, made.base.facts, made.trains.generator)
    model.delta |= new_head(np.random.default_rng(2), made.base.facts.hidden_size)
    return NumpyEngine(model, made)
