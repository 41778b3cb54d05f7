"""Requirements and memory of `train.precision: fp8`: the layers' linear modules multiply in 8 bits."""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks import Decision, PlanError
from finetooth_hooks.protocols import EngineRequest, PickedKernel, PlanRequest
from finetooth_toolbox.precision_choice import stored_precision

__all__ = ["FP8", "kept_bytes", "rounding_bytes", "with_cost", "with_stored_precision"]

FP8 = "fp8"
ROUNDED = 5
"""Bytes per number while it is rounded: in float32, and in 8 bits."""


def with_cost(precision: Decision, request: PlanRequest) -> Decision:
    """The decision, with what it costs.

    Raises:
        PlanError: the base is quantised, and its library makes the products.
    """
    stored = request.base.stored
    if stored is not None:
        raise PlanError(
            f"train.precision=fp8: the base is stored as {stored.name}, and what it multiplies with is not in 8 bits",
            action="set train.precision to bf16, or take a base of plain numbers",
        )
    weight, _ = rounding_bytes(request)
    cost = (
        "linear modules of the layers multiply in 8-bit floating point, and all else is in bf16; a number is off by "
        "up to 6 % before it multiplies, and every pass rounds each weight again, "
        f"{weight / 1e6:,.0f} MB at once"
    )
    return replace(precision, reason=f"{precision.reason}; {cost}")


def rounding_bytes(request: PlanRequest) -> tuple[int, int]:
    """Temporary memory of rounding: the largest weight of a layer, and bytes per token of its rows."""
    facts = request.base.facts
    widest = max(facts.ffn_size, facts.hidden_size)
    return ROUNDED * widest * facts.hidden_size, ROUNDED * widest


def kept_bytes(request: PlanRequest) -> int:
    """Additional bytes per token that one layer of the stream decoder keeps: inputs of its linear modules in 8 bits, if
    their weights train."""
    facts = request.base.facts
    if request.train.precision != FP8 or request.trains.base_frozen:
        return 0
    return 2 * facts.hidden_size + facts.heads * facts.head_dim + facts.ffn_size


def with_stored_precision(request: EngineRequest) -> EngineRequest:
    """The request with the precision in which numbers are stored. Its kernels include `fp8_linear` only if the run's
    precision is fp8."""
    from finetooth_kernels.operations import OPERATIONS

    from finetooth_torch.compute import FP8 as OPERATION

    train = request.plan.train
    kernels = {name: picked for name, picked in request.compute.kernels.items() if name != OPERATION}
    if train.precision == FP8:
        torchs = OPERATIONS[OPERATION].torch
        assert torchs is not None
        kernels[OPERATION] = request.compute.kernels.get(OPERATION) or PickedKernel("finetooth-torch:torch", torchs)
    train = replace(train, precision=stored_precision(str(train.precision)))
    return replace(request, plan=replace(request.plan, train=train), compute=replace(request.compute, kernels=kernels))
