"""EBFT: answers learn to have the features of a reference answer."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl

HEADLINE = ("ebft/alignment ↑", "ebft/diversity ↓", "ebft/cfm_loss ↓")


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="ebft",
        build="finetooth_ebft.method:Ebft",
        summary="learn answers whose features in a frozen network match those of a reference answer",
        headline=HEADLINE,
        evaluators=("exact_match",),
        needs=frozenset({"depths"}),
        example={
            "num_generations": 2,
            "max_completion_length": 4,
            "skip_zero_advantage_batches": False,
            "keep_rollouts": False,
        },
        learns_from="prompts with one reference answer each; no reward and no preferences",
        rows="1,000 to 100,000 prompts with an answer (arXiv:2603.12248)",
    )
    yield Method(
        name="ebft_strided",
        build="finetooth_ebft.strided:Strided",
        summary="learn to continue a document so that features in a frozen network match those of its own next tokens",
        headline=HEADLINE,
        needs=frozenset({"depths", "trees"}),
        example={"n_samples_per_prompt": 2, "context_length": 2, "generate_max_len": 2, "stride": 4},
        learns_from="documents or answers as sft has them; no reward and no preferences",
    )
