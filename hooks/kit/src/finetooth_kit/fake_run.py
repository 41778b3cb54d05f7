"""A run as observers see it, without a run."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_hooks.plan import Decision, MemoryEstimate, Plan

from finetooth_kit.fake_context import TRAIN


def plan_of(total_steps: int | None = 3) -> Plan:
    """A small plan."""
    return Plan(
        recipe={"model": "toy", "data": {"train": "train.jsonl"}, "method": "sft", "output": "runs/toy"},
        picks={"method": "under-test:sft"},
        options={"method": {}},
        train=TRAIN,
        decisions=(Decision("train.precision", "fp32", "the toy has no other"),),
        memory=MemoryEstimate({"weights": 1024}),
        total_steps=total_steps,
        hash="0" * 64,
    )


@dataclass
class FakeRun:
    """Implements `finetooth_hooks.Run`."""

    folder: Path
    plan: Plan = field(default_factory=plan_of)
    step: int = 0
    total_steps: int | None = 3
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Any = None
    state: MutableMapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.folder.name
