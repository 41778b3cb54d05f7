"""Combines several losses into one: the union of their needs, the strictest grouping, all components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from finetooth_hooks.compute.losses import Contribution, LossData, LossResult, LossSpec, LossState, Metric, Outputs
from finetooth_hooks.entries import Together

_STRICTNESS: tuple[Together, ...] = get_args(Together)


def combined(parts: Sequence[tuple[LossSpec, float]]) -> LossSpec:
    """The weighted sum of losses, evaluated on the same outputs.

    Components keep their names; a repeated name gets a number. Of metrics with the same name, that of the first loss is
    reported. Each loss has its own state.

    Args:
        parts: losses with their weights, at least one.
    """
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    specs = [spec for spec, _ in parts]

    def fn(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        contributions: dict[str, Contribution] = {}
        metrics: dict[str, Metric] = {}
        after: dict[str, object] = {}
        for place, (spec, weight) in enumerate(parts):
            mine = f"{place}/"
            own = {name.removeprefix(mine): value for name, value in state.items() if name.startswith(mine)}
            result = spec.fn(outputs, data, own)
            for name, part in result.contributions.items():
                contributions[_free(name, contributions)] = replace(part, weight=part.weight * weight)
            metrics = {**result.metrics, **metrics}
            after |= {f"{mine}{name}": value for name, value in result.state.items()}
        return LossResult(contributions, metrics, after)

    return LossSpec(
        name="+".join(spec.name for spec in specs),
        fn=fn,
        needs=frozenset().union(*(spec.needs for spec in specs)),
        together=max((spec.together for spec in specs), key=_STRICTNESS.index),
        proportional_to=common_field(specs),
    )


def common_field(specs: Iterable[LossSpec]) -> str | None:
    """The common field to which the gradients of all losses are proportional; None without one."""
    fields = {spec.proportional_to for spec in specs}
    return fields.pop() if len(fields) == 1 else None


def _free(name: str, taken: dict[str, Contribution]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    return free


def with_known_role(spec: LossSpec, role: str) -> LossSpec:
    """The loss with the log-probabilities of a role from the data: the field `logprobs@ROLE` (N,) of every datum
    replaces the output of that name."""
    known = f"logprobs@{role}"

    def fn(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        return spec.fn({**outputs, known: data.fields[known]}, data, state)

    return replace(spec, fn=fn, needs=spec.needs - {known})
