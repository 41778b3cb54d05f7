"""Learning from a teacher: its distributions over tokens, or its judgement of what the policy writes."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="distill",
        build="finetooth_distillation.offline:build",
        summary="learn the teacher's distribution over each next token of the rows",
        needs=frozenset({"roles"}),
        example={"teacher": "runs/large"},
        elsewhere={"kd": {}},
    )
    yield Method(
        name="opd",
        build="finetooth_distillation.on_policy:build",
        summary="the policy answers, the teacher judges each of its tokens",
        needs=frozenset({"roles"}),
        headline=("reverse_kl",),
        evaluators=("exact_match",),
        example={"teacher": "runs/large", "max_completion_length": 4, "keep_rollouts": False},
        elsewhere={"on_policy_distillation": {}},
    )
    yield Method(
        name="gkd",
        build="finetooth_distillation.generalized:build",
        summary="the teacher's distributions over rows and over the policy's own answers to them, mixed",
        needs=frozenset({"roles"}),
        headline=("divergence", "on_policy"),
        example={"teacher": "runs/large", "temperature": 1.0, "max_completion_length": 4},
        elsewhere={"generalized_knowledge_distillation": {}},
    )
    yield Method(
        name="sdft",
        build="finetooth_distillation.self_distilled:build",
        summary="the model, shown a demonstration, teaches itself to answer without it",
        needs=frozenset({"roles"}),
        headline=("divergence",),
        evaluators=("exact_match",),
        example={"max_completion_length": 4, "keep_rollouts": False},
        learns_from="prompts, each with an answer as a demonstration",
        elsewhere={"self_distillation": {}},
    )
    yield Method(
        name="uld",
        build="finetooth_distillation.universal:build",
        summary="a teacher with another tokenizer, compared where both have read the same text",
        headline=("loss", "aligned"),
        example={"teacher": "runs/large"},
        elsewhere={"gold": {}, "cross_tokenizer_distillation": {}},
    )


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="distillation",
        build="finetooth_distillation.loss:build",
        summary="divergence of the policy's distribution over tokens from a teacher's",
        needs=frozenset({"logprobs"}),
        fields=frozenset({"teacher_logprobs"}),
    )
    yield Loss(
        name="sorted_probabilities",
        build="finetooth_distillation.universal:build_loss",
        summary="how far the policy's probabilities are from a teacher's of another vocabulary, in the order of size",
        needs=frozenset({"logits"}),
        fields=frozenset({"aligned", "teacher_sorted"}),
    )
