"""Dynamic loss scaling for fp16 (Micikevicius et al., 2018, arXiv:1710.03740, section 3.2).

Gradients of fp16 weights below 6e-8 vanish, so the loss is multiplied by a scale before backward and the gradients are
divided by it when they are collected in fp32. After an overflow the step is skipped and the scale halved; after a run
of good steps it is doubled.
"""

from __future__ import annotations

from collections.abc import Mapping

SMALLEST = 2.0**-14


class LossScaler:
    """The loss scale.

    Args:
        scale: at the start.
        growth_interval: good steps in a row before it grows.
        growth: factor after them.
        backoff: factor after an overflow.
        enabled: with False the scale is 1 and never changes.
    """

    def __init__(
        self,
        scale: float = 1024.0,
        *,
        growth_interval: int = 2000,
        growth: float = 2.0,
        backoff: float = 0.5,
        enabled: bool = True,
    ) -> None:
        self.scale = scale if enabled else 1.0
        self.good_steps = 0
        self.enabled = enabled
        self._interval, self._growth, self._backoff = growth_interval, growth, backoff

    @property
    def can_lower(self) -> bool:
        """Whether a lower scale may help; if not, an overflow has another cause."""
        return self.enabled and self.scale * self._backoff >= SMALLEST

    def update(self, *, overflow: bool) -> None:
        """After every step: lower the scale on overflow, raise it after enough good steps."""
        if not self.enabled:
            return
        if overflow:
            self.scale, self.good_steps = self.scale * self._backoff, 0
            return
        self.good_steps += 1
        if self.good_steps == self._interval:
            self.scale, self.good_steps = self.scale * self._growth, 0

    def state(self) -> dict[str, float]:
        """JSON-able."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from `state()`."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
