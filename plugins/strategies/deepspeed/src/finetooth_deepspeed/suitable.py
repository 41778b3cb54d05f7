"""Whether an optimizer can work on a part of its parameters."""

from __future__ import annotations

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Optimizer
from finetooth_torchshared.elementwise import obstacle_to_parts

UNFIT = ("averages", "in_backward", "in_turn", "masterless")
"""Capabilities of optimizers that need every weight at every rank, or make the update themselves."""


def check_suitable(factory: Optimizer) -> None:
    """ZeRO lays the parameters of a group end to end, and gives each rank a part of that row. An optimizer must come
    to the same numbers on it as on whole parameters, and keep its state as numbers for each weight.

    Raises:
        PlanError: it does not.
    """
    unfit = sorted(set(UNFIT) & set(factory.capabilities))
    reason = f"it has the capability {unfit[0]}" if unfit else obstacle_to_parts(factory)
    if reason:
        raise PlanError(
            f"scale.strategy: deepspeed gives each rank a part of the weights, which this optimizer cannot update: "
            f"{reason}",
            action="set optimizer: adamw, or scale.strategy: ddp",
        )
