"""Process reward models: learn which steps of an answer are right."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Evaluator, Loss, Method, ScalarHead, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="prm",
        build="finetooth_prm.method:Prm",
        summary="train a process reward model on answers whose steps have labels",
        learns_from="answers whose steps are marked right or wrong",
        rows="10,000 rows and more",
        head=ScalarHead(bias=True, exported_as="token"),
        evaluators=("steps",),
        headline=("steps/accuracy",),
    )


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="step_cross_entropy",
        build="finetooth_prm.loss:build",
        summary="cross entropy of each step's label, right or wrong, at the step's end",
        needs=frozenset({"values"}),
        fields=frozenset({"labels"}),
    )


@hookimpl
def ft_evaluators() -> Iterator[Evaluator]:
    yield Evaluator(
        name="steps",
        build="finetooth_prm.evaluator:StepsEvaluator",
        summary="accuracy on held-out steps: balanced, on right steps and on wrong steps",
        needs=frozenset({"head"}),
    )
