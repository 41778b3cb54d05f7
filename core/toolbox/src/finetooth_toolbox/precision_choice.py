"""Chooses the precision of a run."""

from __future__ import annotations

from finetooth_hooks.errors import PlanError
from finetooth_hooks.plan import Decision
from finetooth_hooks.protocols import HardwareFacts


def stored_precision(precision: str) -> str:
    """The precision of stored weights, activations and gradients: fp8 applies only to multiplications."""
    return "bf16" if precision == "fp8" else precision


def choose_precision(precision: str | None, hardware: HardwareFacts) -> Decision:
    """The recipe's precision, or the best one of the hardware.

    Args:
        precision: `train.precision`; None: `auto`.

    Raises:
        PlanError: the hardware does not support the precision.
    """
    setting, recipe_says = "train.precision", "the recipe says so"
    if precision is None:
        best = hardware.precisions[0]
        reason = f"computed natively by {hardware.label}"
        if best != "bf16" and "bf16" not in hardware.precisions:
            reason += ", and bf16 not"
        return Decision(setting, best, reason)
    if precision in hardware.precisions:
        return Decision(setting, precision, recipe_says)
    if precision in hardware.slow_precisions:
        return Decision(setting, precision, f"{recipe_says}; works on {hardware.label}, but slower than fp32")
    raise PlanError(
        f"train.precision={precision}: not possible on {hardware.label}",
        action=f"set train.precision to auto or {' or '.join(hardware.precisions)}",
    )
