"""Learning from a teacher: from its distributions over tokens, or its judgement of the policy's answers."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="distill",
        build="finetooth_distillation.offline:Distill",
        summary="learn the teacher's distribution over each next token of the rows",
        needs=frozenset({"roles"}),
        example={"teacher": "runs/large"},
        elsewhere={"kd": {}},
    )
    yield Method(
        name="opd",
        build="finetooth_distillation.on_policy:OnPolicyDistillation",
        summary="the policy answers, and the teacher judges each token of the answer",
        needs=frozenset({"roles"}),
        headline=("reverse_kl",),
        evaluators=("exact_match",),
        example={"teacher": "runs/large", "max_completion_length": 4, "keep_rollouts": False},
        elsewhere={"on_policy_distillation": {}},
    )
    yield Method(
        name="gkd",
        build="finetooth_distillation.generalized:Gkd",
        summary="learn the teacher's distributions over the rows' answers and over the policy's own, mixed",
        needs=frozenset({"roles"}),
        headline=("divergence", "on_policy"),
        example={"teacher": "runs/large", "temperature": 1.0, "max_completion_length": 4},
        elsewhere={"generalized_knowledge_distillation": {}},
    )
    yield Method(
        name="sdft",
        build="finetooth_distillation.self_distilled:SelfDistilled",
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
        build="finetooth_distillation.universal:Universal",
        summary="learn from a teacher with another tokenizer, compared wherever both have read the same text",
        headline=("loss", "aligned"),
        example={"teacher": "runs/large"},
        elsewhere={"gold": {}, "cross_tokenizer_distillation": {}},
    )


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(
        name="distillation",
        build="finetooth_distillation.loss:build",
        summary="divergence of the policy's distribution over tokens from the teacher's",
        needs=frozenset({"logprobs"}),
        fields=frozenset({"teacher_logprobs"}),
    )
    yield Loss(
        name="sorted_probabilities",
        build="finetooth_distillation.universal:build_loss",
        summary="distance between the sorted probabilities of the policy and of a teacher with another vocabulary",
        needs=frozenset({"logits"}),
        fields=frozenset({"aligned", "teacher_sorted"}),
    )
