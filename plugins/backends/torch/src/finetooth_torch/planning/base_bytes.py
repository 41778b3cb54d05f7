"""Bytes of a base model's weights."""

from __future__ import annotations

from finetooth_hooks.protocols import BasePart, PlanRequest

from finetooth_torch.planning.layer_memory import BYTES
from finetooth_torch.planning.role_memory import linear_weights


def resident_bytes(base: BasePart, precision: str) -> int:
    """Bytes of the base's weights after loading: from its loader, from its quantizer, else in the run's precision."""
    size, model = BYTES[precision], base.model
    weights, taken = stored_bytes(base)
    if weights:
        return (model.parameters - weights) * size + taken
    return model.parameters * size if model.resident_bytes is None else model.resident_bytes


def stored_bytes(base: BasePart) -> tuple[int, int]:
    """How many of the base's weights are stored in fewer bits, and the bytes that these take."""
    model = base.model
    if base.quantizer is not None:
        weights = linear_weights(base.quantizer, base.facts) + model.expert_weights
        return weights, int(weights * base.quantizer.stored.bytes_per_weight)
    if model.stored is not None and model.stored_weights:
        return model.stored_weights, int(model.stored_weights * model.stored.bytes_per_weight)
    return 0, 0


def kept_by_others(request: PlanRequest) -> int:
    """Bytes of a base in fewer bits that this rank does not hold even while it reads it, since others keep them."""
    sharding, quantizer = request.place.sharding, request.base.quantizer
    whole = quantizer is not None and "calibrate" in quantizer.capabilities
    if sharding is None or sharding.keeps is None or whole:
        return 0
    stored = stored_bytes(request.base)[1]
    return stored - stored // sharding.weights
