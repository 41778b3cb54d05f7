"""Options of schedule-free optimizers. torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from finetooth_torchshared.optimizers import Beta, Groups, OptimizerOptions, TorchOptimizer
from pydantic import Field

if TYPE_CHECKING:
    import torch


class ScheduleFreeSgdOptions(OptimizerOptions):
    """Options of `schedule_free_sgd`."""

    learning_rate: float = Field(default=1.0, gt=0)
    """Constant learning rate. Set `schedule: constant`, with a warm-up if you want one."""
    interpolation: float = Field(default=0.9, gt=0, lt=1)
    """How close to the average the weights for gradients are (beta in the paper)."""
    power: float = Field(default=2.0, ge=0)
    """A step's weight in the average is the largest learning rate so far to this power, so a warm-up counts little."""


class ScheduleFreeAdamWOptions(ScheduleFreeSgdOptions):
    """Options of `schedule_free_adamw`."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Constant learning rate: 1 to 10 times that of AdamW with a schedule. Set `schedule: constant`, with a warm-up if
    you want one."""
    beta2: Beta = 0.999
    """Decay rate of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


def build_adamw(options: ScheduleFreeAdamWOptions) -> TorchOptimizer:
    """Schedule-free AdamW (Defazio et al., 2024, arXiv:2405.15682, algorithm 1)."""
    return _optimizer(options, "adamw", options.beta2, options.eps)


def build_sgd(options: ScheduleFreeSgdOptions) -> TorchOptimizer:
    """Schedule-free SGD (Defazio et al., 2024, arXiv:2405.15682, equations 2 to 4)."""
    return _optimizer(options, "sgd", 0.0, 0.0)


def _optimizer(
    options: ScheduleFreeSgdOptions, base: Literal["adamw", "sgd"], beta2: float, eps: float
) -> TorchOptimizer:
    from finetooth_schedulefree.schedule_free import ScheduleFree, averaged

    def make(groups: Groups) -> torch.optim.Optimizer:
        shared = {
            "lr": options.learning_rate, "base": base, "interpolation": options.interpolation, "beta2": beta2,
            "eps": eps, "power": options.power,
        }  # fmt: skip
        return ScheduleFree(groups, shared)

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, average=averaged)
