"""Probes, as an evaluator that brings its own questions."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Evaluator, hookimpl


@hookimpl
def ft_evaluators() -> Iterable[Evaluator]:
    """The evaluator `probes`."""
    yield Evaluator(
        name="probes",
        build="finetooth_probes.evaluator:build",
        summary="share of 54 fixed questions answered as they should be",
        needs=frozenset({"generate"}),
        brings_rows=True,
    )
