"""Facts on which two engines of a process must agree to share one copy of a base. It needs no array library."""

from __future__ import annotations

from finetooth_hooks.protocols import EngineRequest

Key = tuple[object, ...]


def base_key(request: EngineRequest, precision: str) -> Key:
    """Equal for requests whose bases are the same numbers.

    Args:
        precision: that the base is loaded in.
    """
    model, facts, plan = request.base.model, request.base.facts, request.plan
    return (
        model.reference,
        model.revision,
        model.loader,
        repr(plan.options.get("loader")),
        precision,
        request.place.hardware.device,
        facts.vocab_size,
        facts.new_tokens,
        plan.picks.get("quantizer"),
        repr(plan.options.get("quantizer")),
    )
