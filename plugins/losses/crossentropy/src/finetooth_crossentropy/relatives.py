"""Entries of the relatives of cross entropy."""

from __future__ import annotations

from finetooth_hooks import Loss

RELATIVES = (
    Loss(
        name="focal",
        build="finetooth_crossentropy.variants:build_focal",
        summary="cross entropy that looks away from what the model knows already",
        together="sequence",
    ),
    Loss(
        name="dft",
        build="finetooth_crossentropy.variants:build_dft",
        summary="dynamic fine-tuning: each target counts as much as the model believes in it",
        together="sequence",
        expected_failures={"gradient_is_the_slope": "the probability is held constant, on purpose"},
    ),
    Loss(
        name="smoothed_cross_entropy",
        build="finetooth_crossentropy.variants:build_smoothed",
        summary="cross entropy with label smoothing and z-loss; holds the logits of a micro-batch",
        needs=frozenset({"logprobs", "logits"}),
        together="sequence",
    ),
)
