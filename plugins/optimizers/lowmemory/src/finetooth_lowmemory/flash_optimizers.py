"""Options of FlashOptim's five optimizers, and sizes of states. torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetooth_hooks import Context, RecipeError
from finetooth_torchshared.optimizers import Beta, Groups, MomentsOptions, OptimizerOptions, SignOptions, TorchOptimizer
from pydantic import Field

if TYPE_CHECKING:
    import torch

STATE = 1 + 2 / 32
"""Bytes of a number of a state: its code, and its part of a scale in fp16."""


class FlashAdamOptions(MomentsOptions):
    """Options of `flash_adam`."""


class FlashAdamwOptions(FlashAdamOptions):
    """Options of `flash_adamw`."""


class FlashSgdOptions(OptimizerOptions):
    """Options of `flash_sgd`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay rate of the momentum; 0 keeps none."""
    nesterov: bool = False
    """Use Nesterov momentum; needs `momentum`."""


class FlashSgdwOptions(FlashSgdOptions):
    """Options of `flash_sgdw`."""


class FlashLionOptions(SignOptions):
    """Options of `flash_lion`."""


def build_flash_adamw(options: FlashAdamwOptions, context: Context) -> TorchOptimizer:
    """AdamW with moments in 8 bits (FlashOptim; Gonzalez Ortiz et al., 2026, arXiv:2602.23349)."""
    return _optimizer("FlashAdam", options, 2, decoupled=True, betas=options.betas, eps=options.eps)


def build_flash_adam(options: FlashAdamOptions, context: Context) -> TorchOptimizer:
    """Adam with moments in 8 bits, which adds weight_decay times the weight to the gradient."""
    return _optimizer("FlashAdam", options, 2, decoupled=False, betas=options.betas, eps=options.eps)


def build_flash_sgd(options: FlashSgdOptions, context: Context) -> TorchOptimizer:
    """SGD with momentum in 8 bits, which adds weight_decay times the weight to the gradient.

    Raises:
        RecipeError: `nesterov` without `momentum`.
    """
    return _sgd(options, decoupled=False)


def build_flash_sgdw(options: FlashSgdwOptions, context: Context) -> TorchOptimizer:
    """SGD with momentum in 8 bits and decoupled weight decay.

    Raises:
        RecipeError: `nesterov` without `momentum`.
    """
    return _sgd(options, decoupled=True)


def build_flash_lion(options: FlashLionOptions, context: Context) -> TorchOptimizer:
    """Lion with momentum in 8 bits."""
    return _optimizer("FlashLion", options, 1, decoupled=True, betas=options.betas)


def _sgd(options: FlashSgdOptions, *, decoupled: bool) -> TorchOptimizer:
    if options.nesterov and not options.momentum:
        raise RecipeError("optimizer.nesterov", "needs momentum", action="set optimizer.momentum, 0.9 for instance")
    own = {"momentum": options.momentum, "nesterov": options.nesterov}
    return _optimizer("Flash", options, 1 if options.momentum else 0, decoupled=decoupled, **own)


def _optimizer(kind: str, options: Any, states: int, **settings: Any) -> TorchOptimizer:
    """
    Args:
        states: count of numbers per weight.
    """

    def make(groups: Groups) -> torch.optim.Optimizer:
        from finetooth_lowmemory import flash

        made: torch.optim.Optimizer = getattr(flash, kind)(groups, {"lr": options.learning_rate, **settings})
        return made

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, keeps=lambda _: states * STATE
    )
