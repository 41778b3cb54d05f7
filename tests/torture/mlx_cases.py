"""Recipes of the MLX engine: every pair of its choices, and methods that keep more than a place in the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cases import CHOICES, Case, pairwise  # type: ignore[import-not-found]
from method_cases import METHOD_CASES, ONLINE_CASES, MethodCase  # type: ignore[import-not-found]

MLX: Mapping[str, Any] = {"backend": "mlx"}
CHOICES_OF_MLX = {**CHOICES, "adapter": ("lora", "full"), "precision": ("bf16", "fp32")}
METHODS = (
    "dpo-adapter_off", "dpo-following_copy", "dpo-following_copy-full-bf16", "dpo-running_mean", "kto",
    "kto-following_copy", "rm", "prm", "grpo", "grpo-ahead-parts", "ppo", "gkd", "ebft", "sdft", "spin", "uld",
    "uld-length", "self_rewarding", "iterative_dpo", "distill", "opd",
)  # fmt: skip
"""Of the methods' cases, those whose adapters, optimizers and samplers are not torch's alone."""


@dataclass(frozen=True)
class MlxCase(Case):  # type: ignore[misc]
    """One combination."""

    @property
    def name(self) -> str:
        return f"mlx-{super().name}"

    def recipe(self, folder: Path, model: Path, output: Path) -> dict[str, Any]:
        return {**super().recipe(folder, model, output), **MLX}


def mlx_cases(seed: int = 0) -> list[Case | MethodCase]:
    """Every pair of choices, over every schedule and each optimizer of MLX; then the methods."""
    from finetooth_core.plugins import manager

    catalog = manager.start().catalog
    standard = {
        kind: tuple(sorted(r.entry.name for r in catalog.all(kind) if r.distribution == package))
        for kind, package in (("schedule", "finetooth-schedules"), ("optimizer", "finetooth-mlx"))
    }
    made = [MlxCase(case.choices) for case in pairwise(seed, **{**CHOICES_OF_MLX, **standard})]
    for case in (one for one in (*METHOD_CASES, *ONLINE_CASES) if one.name in METHODS):
        inside = tuple("mlx_token" if kind == "token" else kind for kind in case.inside)
        made.append(replace(case, name=f"mlx-{case.name}", sections={**case.sections, **MLX}, inside=inside))
    return made
