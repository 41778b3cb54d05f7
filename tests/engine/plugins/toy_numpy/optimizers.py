"""What updates the toy's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Sgd:
    """w - rate * g."""

    def updated(self, name: str, weight: Array, grad: Array, rate: float) -> Array:
        return weight - rate * grad

    def arrays(self) -> Mapping[str, Array]:
        return {}

    def numbers(self) -> Mapping[str, Any]:
        return {}

    def restore(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None: ...


class Adam:
    """Moments with bias correction (Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1)."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.moments: dict[str, Array] = {}
        self.steps: dict[str, int] = {}

    def updated(self, name: str, weight: Array, grad: Array, rate: float) -> Array:
        first = self.moments.get(f"{name}.1", np.zeros_like(weight)) * self.beta1 + (1 - self.beta1) * grad
        second = self.moments.get(f"{name}.2", np.zeros_like(weight)) * self.beta2 + (1 - self.beta2) * grad**2
        self.moments[f"{name}.1"], self.moments[f"{name}.2"] = first, second
        t = self.steps[name] = self.steps.get(name, 0) + 1
        return weight - rate * (first / (1 - self.beta1**t)) / (np.sqrt(second / (1 - self.beta2**t)) + self.eps)

    def arrays(self) -> Mapping[str, Array]:
        return self.moments

    def numbers(self) -> Mapping[str, Any]:
        return self.steps

    def restore(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        self.moments, self.steps = dict(arrays), dict(numbers)
