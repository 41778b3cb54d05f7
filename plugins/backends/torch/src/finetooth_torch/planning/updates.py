"""Whether an optimizer supports a recipe's settings of steps."""

from __future__ import annotations

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import PlanRequest

from finetooth_torch.planning.offload import among_ranks


def check_updates(request: PlanRequest, precision: str) -> None:
    """Checks that the recipe's settings fit the optimizer's abilities.

    Raises:
        PlanError: the optimizer does not support a setting.
    """
    name, words = request.updates.name, request.updates.optimizer.capabilities
    if "masterless" in words and precision != "bf16":
        raise PlanError(
            f"train.precision={precision}: {name} with this optimizer.rounding rounds weights into bf16",
            action="set train.precision to bf16, or leave out optimizer.rounding",
        )
    if "averages" in words and "changes" in request.trains.adapter.capabilities:
        raise PlanError(
            f"optimizer: {name} keeps averages of weights over steps, and the adapter changes the model between steps: "
            "what it merges or lets rest would not be what is evaluated",
            action="pick another optimizer, or another adapter",
        )
    if "in_backward" not in words:
        return
    if request.train.max_grad_norm:
        raise PlanError(
            f"train.max_grad_norm={request.train.max_grad_norm:g}: {name} updates inside backward, before the norm of "
            "all gradients is known",
            action="set train.max_grad_norm to 0, or pick another optimizer",
        )
    if precision == "fp16":
        raise PlanError(
            f"train.precision=fp16: {name} updates inside backward, before it is known whether gradients overflow",
            action="set train.precision to bf16 or fp32, or pick another optimizer",
        )
    if among_ranks(request.place):
        raise PlanError(
            f"optimizer: {name} updates inside backward, before gradients of several ranks are added up",
            action="run on one rank, or pick another optimizer",
        )
