"""Entries of the relatives of cross entropy."""

from __future__ import annotations

from finetooth_hooks import Loss

RELATIVES = (
    Loss(
        name="focal",
        build="finetooth_crossentropy.variants:build_focal",
        summary="cross entropy with less weight on tokens that the model already predicts well",
        together="sequence",
    ),
    Loss(
        name="dft",
        build="finetooth_crossentropy.variants:build_dft",
        summary="dynamic fine-tuning: cross entropy in which each token is weighted by its own probability",
        together="sequence",
        expected_failures={"gradient_is_the_slope": "the probability is held constant, on purpose"},
    ),
    Loss(
        name="smoothed_cross_entropy",
        build="finetooth_crossentropy.variants:build_smoothed",
        summary="cross entropy with label smoothing and z-loss; keeps a micro-batch's logits in memory",
        needs=frozenset({"logprobs", "logits"}),
        together="sequence",
    ),
)
