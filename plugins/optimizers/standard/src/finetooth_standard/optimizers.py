"""Optimizers over torch parameters; torch is imported when one is built, so that options are available without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from finetooth_hooks import Context, RecipeError
from finetooth_torchshared.optimizers import Beta, MomentsOptions, OptimizerOptions, SignOptions, TorchOptimizer, adamw
from pydantic import Field

if TYPE_CHECKING:
    import torch


class AdamWOptions(MomentsOptions):
    """Options of `adamw`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate. The default suits low-rank adapters; full fine-tuning needs about a tenth."""


class OptimiAdamWOptions(AdamWOptions):
    """Options of `optimi_adamw`. In place of its Kahan sum: `rounding: corrected`, which keeps what rounding lost."""

    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    decouple_lr: bool = False
    """Each step shrinks a weight by weight_decay of itself, not by learning_rate * weight_decay; the schedule scales
    both. 1e-5 is then the same as 0.05 at a learning rate of 2e-4."""


class SgdOptions(OptimizerOptions):
    """Options of `sgd`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay rate of the momentum; 0 keeps none."""
    nesterov: bool = False
    """Use Nesterov momentum; needs `momentum`."""


class AdafactorOptions(OptimizerOptions):
    """Options of `adafactor`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate, relative: a tensor's update is this (at step t at most 1 / sqrt(t)) times the root mean
    square of its weights, or times 0.001 if that is smaller. So the zero matrix of a new adapter starts slowly."""
    beta2_decay: float = Field(default=-0.8, lt=0)
    """The decay rate of the second moment at step t is 1 - t ** beta2_decay."""
    clip: float = Field(default=1.0, ge=1)
    """Updates with a larger root mean square are scaled down to it."""


class LionOptions(SignOptions):
    """Options of `lion`."""


def _together(groups: list[dict[str, Any]]) -> bool:
    """Update all tensors of a group in one kernel: worth its extra memory only if launching kernels is slow. Set
    explicitly, so that the choice is the same for all versions of torch."""
    return any(p.device.type != "cpu" for group in groups for p in group["params"])


def _optimizer(
    options: Any, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], keeps: float | None = None
) -> TorchOptimizer:
    """
    Args:
        keeps: bytes of state per parameter; None: the entry's value.
    """
    bytes_of = None if keeps is None else lambda _: keeps
    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, keeps=bytes_of)


def build_adamw(options: AdamWOptions, context: Context) -> TorchOptimizer:
    """torch.optim.AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101)."""
    make = partial(adamw, learning_rate=options.learning_rate, betas=options.betas, eps=options.eps)
    return _optimizer(options, make)


def build_optimi_adamw(options: OptimiAdamWOptions, context: Context) -> TorchOptimizer:
    """AdamW as in optimi 0.3 (https://optimi.benjaminwarner.dev), with weight decay that can be independent of the
    learning rate (Loshchilov & Hutter, 2019, arXiv:1711.05101, algorithm 2)."""
    decay = options.weight_decay / (options.learning_rate if options.decouple_lr else 1.0)
    return build_adamw(options.model_copy(update={"weight_decay": decay}), context)


def build_sgd(options: SgdOptions, context: Context) -> TorchOptimizer:
    """torch.optim.SGD.

    Raises:
        RecipeError: `nesterov` without `momentum`.
    """
    import torch

    if options.nesterov and not options.momentum:
        raise RecipeError("optimizer.nesterov", "needs momentum", action="set optimizer.momentum, 0.9 for instance")
    return _optimizer(
        options,
        lambda groups: torch.optim.SGD(
            groups,
            lr=options.learning_rate,
            momentum=options.momentum,
            nesterov=options.nesterov,
            foreach=_together(groups),
        ),
        keeps=4.0 if options.momentum else 0.0,
    )


def build_adafactor(options: AdafactorOptions, context: Context) -> TorchOptimizer:
    """torch.optim.Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235)."""
    import torch

    return _optimizer(
        options,
        lambda groups: torch.optim.Adafactor(
            groups, lr=options.learning_rate, beta2_decay=options.beta2_decay, d=options.clip, foreach=_together(groups)
        ),
    )


def build_lion(options: LionOptions, context: Context) -> TorchOptimizer:
    """Lion (Chen et al., 2023, arXiv:2302.06675)."""
    from finetooth_standard.lion import Lion

    return _optimizer(options, lambda groups: Lion(groups, lr=options.learning_rate, betas=options.betas))
