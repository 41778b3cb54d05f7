"""Names of metrics that several evaluators of a run report."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import chain, count

from finetooth_hooks.reports import Evaluation


def distinct(name: str, taken: Collection[str]) -> str:
    """The name, or the first of `NAME_2`, `NAME_3`, ... that is not taken."""
    names = chain((name,), (f"{name}_{number}" for number in count(2)))
    return next(free for free in names if free not in taken)


def distinct_names(evaluation: Evaluation, others: Iterable[Evaluation]) -> Evaluation:
    """An evaluation whose name and metrics no earlier evaluation of its step has, so that none replaces another's."""
    earlier = [other for other in others if other.step == evaluation.step]
    taken = {name for other in earlier for name in other.metrics}
    name = distinct(evaluation.name, {other.name for other in earlier})
    return replace(
        evaluation, name=name, metrics={distinct(name, taken): value for name, value in evaluation.metrics.items()}
    )


def all_distinct(evaluations: Iterable[Evaluation]) -> tuple[Evaluation, ...]:
    """Evaluations of one step, each with names of its own."""
    made: list[Evaluation] = []
    for evaluation in evaluations:
        made.append(distinct_names(evaluation, made))
    return tuple(made)
