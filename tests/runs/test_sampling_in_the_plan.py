"""The plan knows whether a method draws from the engine that trains, which its options decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import finetooth
import pytest
from finetooth_torch.backend import TorchBackend


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 12}
    return online_recipe(method, {"batch_size": 2, "max_steps": 1})  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("sampler", "wanted"),
    [("engine", {"generate"}), ({"name": "vllm", "url": "http://127.0.0.1:9"}, set())],
)
def test_memory_for_sampling_is_planned_where_it_samples(
    online: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, sampler: Any, wanted: set[str]
) -> None:
    asked, plan = [], TorchBackend.plan

    def noted(backend: TorchBackend, request: Any) -> Any:
        asked.append(set(request.needs))
        return plan(backend, request)

    monkeypatch.setattr(TorchBackend, "plan", noted)
    assert finetooth.session(online(sampler=sampler)).plan
    assert asked[-1] == wanted


def test_layers_that_are_gathered_to_sample_are_planned(online: Callable[..., Any]) -> None:
    def gathered(sampler: Any) -> int:
        made = online(sampler=sampler) | {"scale": {"strategy": "pipeline", "devices": 2}}
        return int(finetooth.session(made).plan.memory.parts.get("gathered", 0))

    assert gathered("engine") > 0 == gathered({"name": "vllm", "url": "http://127.0.0.1:9"})
