"""The price of a nat of KL to the reference, adapted during a run."""

from __future__ import annotations

from collections.abc import Mapping


class FixedKl:
    """A constant price."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def see(self, kl: float) -> None:
        """Ignore the KL."""

    def state(self) -> Mapping[str, float]:
        """JSON-able."""
        return {"coef": self.coef}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore the result of `state`."""
        self.coef = float(state["coef"])


class AdaptiveKl(FixedKl):
    """A price that rises while the KL is above a target and falls while it is below (Ziegler et al., 2019,
    arXiv:1909.08593, section 2.2): coef <- coef (1 + gain clip((KL - target) / target, -0.2, 0.2)).

    Args:
        coef: the initial price.
        target: KL of an answer, in nats.
        gain: the paper's K_beta.
    """

    def __init__(self, coef: float, target: float, gain: float) -> None:
        super().__init__(coef)
        self._target, self._gain = target, gain

    def see(self, kl: float) -> None:
        """Adjust the price to the mean KL of a batch's answers."""
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + self._gain * error
