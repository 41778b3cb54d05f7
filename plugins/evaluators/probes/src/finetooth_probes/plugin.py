"""Evaluators that bring their own questions: probes, and tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Evaluator, hookimpl


@hookimpl
def ft_evaluators() -> Iterable[Evaluator]:
    """The evaluators `probes` and `lm_eval`."""
    yield Evaluator(
        name="probes",
        build="finetooth_probes.evaluator:ProbesEvaluator",
        summary="share of 54 fixed questions that are answered as expected",
        needs=frozenset({"generate"}),
        brings_rows=True,
    )
    yield Evaluator(
        name="lm_eval",
        build="finetooth_probes.harness:build",
        summary="tasks of lm-eval from a folder of yours, scored as lm-eval scores them",
        needs=frozenset({"generate"}),
        brings_rows=True,
    )
