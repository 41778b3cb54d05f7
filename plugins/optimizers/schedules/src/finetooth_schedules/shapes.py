"""Learning-rate schedules as pure functions of the update and their total."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from finetooth_hooks import Context
from pydantic import Field

from finetooth_schedules.warmup import WarmupOptions, needed_total, warmup_steps

Shape = Callable[[int, int, int | None], float]
"""Factor after the warm-up, from update (0-based, at least the warm-up's length), warm-up updates, and total."""


@dataclass(frozen=True)
class ShapedSchedule:
    """A `protocols.Schedule` without state: a linear warm-up, then a shape.

    Attributes:
        options: of the warm-up.
        shape: the factor after the warm-up.
    """

    options: WarmupOptions
    shape: Shape

    def factor(self, step: int, total: int | None) -> float:
        """(step + 1) / w in the warm-up's w updates, then the shape's."""
        warmup = warmup_steps(self.options, total)
        return (step + 1) / warmup if step < warmup else self.shape(step, warmup, total)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Ignore metrics."""

    def state(self) -> Mapping[str, Any]:
        """The empty state."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ConstantOptions(WarmupOptions):
    """Options of `constant`."""


class LinearOptions(WarmupOptions):
    """Options of `linear`."""


class CosineOptions(WarmupOptions):
    """Options of `cosine`."""

    warmup_ratio: float | None = Field(default=0.03, ge=0, le=1)
    """Share of all steps, rounded up, until the full learning rate. Not together with `warmup_steps`."""


class CosineWithRestartsOptions(WarmupOptions):
    """Options of `cosine_with_restarts`."""

    cycles: int = Field(default=2, ge=1)
    """Number of half cosines."""


class CosineWithMinOptions(WarmupOptions):
    """Options of `cosine_with_min`."""

    min_ratio: float = Field(default=0.1, ge=0, le=1)
    """Lowest learning rate, as a share of the full one."""


class PolynomialOptions(WarmupOptions):
    """Options of `polynomial`."""

    power: float = Field(default=2.0, gt=0)
    """Exponent; 1 is a straight line."""
    end_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the full one."""


class InverseSqrtOptions(WarmupOptions):
    """Options of `inverse_sqrt`."""

    timescale: int | None = Field(default=None, ge=1)
    """Steps after which the decay becomes steep. Default: the length of the warm-up, or 10,000 without one."""


class WsdOptions(WarmupOptions):
    """Options of `wsd`: warm-up, stable, decay (Hu et al., 2024, arXiv:2404.06395)."""

    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    """Share of all steps for the decay at the end."""
    decay: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """Shape of the decay."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """Lowest learning rate, as a share of the full one."""


class OneCycleOptions(WarmupOptions):
    """Options of `one_cycle` (Smith & Topin, 2018, arXiv:1708.07120); the way up is its warm-up."""

    warmup_ratio: float | None = Field(default=0.3, ge=0, le=1)
    """Share of all steps, rounded up, until the full learning rate. Not together with `warmup_steps`."""
    start_divisor: float = Field(default=25.0, ge=1)
    """The first learning rate is the full one divided by this."""
    end_divisor: float = Field(default=1e4, ge=1)
    """The last learning rate is the first one divided by this."""


def _progress(step: int, warmup: int, total: int | None, name: str) -> float:
    """Share of the updates after the warm-up that are done, 0 to 1."""
    last = needed_total(total, name)
    return min(1.0, (step - warmup) / max(1, last - warmup))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _constant(step: int, warmup: int, total: int | None) -> float:
    return 1.0


def _linear(step: int, warmup: int, total: int | None) -> float:
    return 1 - _progress(step, warmup, total, "schedule linear")


def _cosine(step: int, warmup: int, total: int | None, *, min_ratio: float = 0.0) -> float:
    return min_ratio + (1 - min_ratio) * _half_cosine(_progress(step, warmup, total, "schedule cosine"))


def _cosine_with_restarts(step: int, warmup: int, total: int | None, *, cycles: int) -> float:
    progress = _progress(step, warmup, total, "schedule cosine_with_restarts")
    return 0.0 if progress >= 1 else _half_cosine(cycles * progress % 1)


def _polynomial(step: int, warmup: int, total: int | None, *, power: float, end_ratio: float) -> float:
    left = 1 - _progress(step, warmup, total, "schedule polynomial")
    return end_ratio + (1 - end_ratio) * float(left**power)


def _inverse_sqrt(step: int, warmup: int, total: int | None, *, timescale: int | None) -> float:
    scale = timescale or warmup or 10_000
    return 1 / math.sqrt((step - warmup + scale) / scale)


def _wsd(step: int, warmup: int, total: int | None, *, decay_ratio: float, decay: str, min_ratio: float) -> float:
    last = needed_total(total, "schedule wsd")
    decaying = min(last - warmup, math.ceil(decay_ratio * last - 1e-9))
    progress = min(1.0, max(0.0, (step - (last - decaying)) / max(1, decaying)))
    shapes: dict[str, Callable[[float], float]] = {
        "linear": lambda p: 1 - p,
        "cosine": _half_cosine,
        "1-sqrt": lambda p: 1 - math.sqrt(p),
    }
    return min_ratio + (1 - min_ratio) * shapes[decay](progress)


@dataclass(frozen=True)
class OneCycle(ShapedSchedule):
    """Half a cosine up from the first rate to the peak at the last warm-up update, then half a cosine down to the rate
    of the last update."""

    first: float
    last: float

    def factor(self, step: int, total: int | None) -> float:
        """As torch's OneCycleLR with its cosine and two phases, as a share of the full rate."""
        end = needed_total(total, "schedule one_cycle") - 1
        peak = max(0, warmup_steps(self.options, total) - 1)
        if step < peak:
            return 1 + (self.first - 1) * _half_cosine(step / peak)
        return self.last + (1 - self.last) * _half_cosine(min(1.0, (step - peak) / max(1, end - peak)))


def build_constant(options: ConstantOptions, context: Context) -> ShapedSchedule:
    """The full rate after the warm-up."""
    return ShapedSchedule(options, _constant)


def build_linear(options: LinearOptions, context: Context) -> ShapedSchedule:
    """A straight line that would reach 0 one update after the last."""
    return ShapedSchedule(options, _linear)


def build_cosine(options: CosineOptions, context: Context) -> ShapedSchedule:
    """Half a cosine to 0 (Loshchilov & Hutter, 2017, arXiv:1608.03983, without restarts)."""
    return ShapedSchedule(options, _cosine)


def build_cosine_with_restarts(options: CosineWithRestartsOptions, context: Context) -> ShapedSchedule:
    """Half cosines of equal length, each from the full rate (arXiv:1608.03983)."""
    return ShapedSchedule(options, partial(_cosine_with_restarts, cycles=options.cycles))


def build_cosine_with_min(options: CosineWithMinOptions, context: Context) -> ShapedSchedule:
    """Half a cosine to a floor."""
    return ShapedSchedule(options, partial(_cosine, min_ratio=options.min_ratio))


def build_polynomial(options: PolynomialOptions, context: Context) -> ShapedSchedule:
    """The remaining share of the run, to a power."""
    return ShapedSchedule(options, partial(_polynomial, power=options.power, end_ratio=options.end_ratio))


def build_inverse_sqrt(options: InverseSqrtOptions, context: Context) -> ShapedSchedule:
    """sqrt(timescale / (updates since the warm-up + timescale)) (Zhai et al., 2022, arXiv:2106.04560)."""
    return ShapedSchedule(options, partial(_inverse_sqrt, timescale=options.timescale))


def build_wsd(options: WsdOptions, context: Context) -> ShapedSchedule:
    """Warm-up, a plateau at the full rate, a decay at the end."""
    shape = partial(_wsd, decay_ratio=options.decay_ratio, decay=options.decay, min_ratio=options.min_ratio)
    return ShapedSchedule(options, shape)


def build_one_cycle(options: OneCycleOptions, context: Context) -> OneCycle:
    """One cycle: up, then down."""
    first = 1 / options.start_divisor
    return OneCycle(options, _constant, first, first / options.end_divisor)
