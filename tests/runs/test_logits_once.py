"""What cross entropy says of its gradient reaches the plan and the engine: a full fine-tune has its logits once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.api import session
from finetooth_hooks import Datum
from finetooth_hooks.protocols import PlanRequest
from finetooth_torch.backend import TorchBackend

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def tiny_model(tiny_smollm2: Path) -> Path:
    """With a vocabulary of real size, which is what takes room here."""
    return tiny_smollm2


def test_the_plan_is_told(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PlanRequest] = []
    plan = TorchBackend.plan

    def recorded(self: TorchBackend, request: PlanRequest) -> Any:
        asked.append(request)
        return plan(self, request)

    monkeypatch.setattr(TorchBackend, "plan", recorded)
    assert session(recipe()).job.plan
    assert [request.proportional_to for request in asked] == ["weights"]


def test_a_full_fine_tune_computes_its_logits_once(tiny_model: Path) -> None:
    recipe: dict[str, Any] = {"model": str(tiny_model), "adapter": "full", "train": {"precision": "fp32"}}
    here = session(recipe, data=False)
    engine, loss = here.engine, here.job.context.loss("cross_entropy")
    data = [Datum.from_tokens(list(range(5, 5 + length))) for length in (9, 4)]
    once, twice = (
        engine.forward_backward(data, replace(loss, proportional_to=name)).flops
        for name in (loss.proportional_to, None)
    )
    weight = engine._parts.network.base.get_output_embeddings().weight  # type: ignore[attr-defined]
    assert twice - once == pytest.approx(2 * sum(int(datum.mask.sum()) for datum in data) * weight.numel())
