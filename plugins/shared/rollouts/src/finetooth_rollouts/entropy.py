"""Entropy of the policy: which tokens it says must count, and a bonus that is steered by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from numpy.typing import NDArray

from finetooth_rollouts.asking import request_outputs
from finetooth_rollouts.options import RolloutOptions

MASK, BONUS = "policy_mask", "entropy_weights"
"""Fields of the loss `surrogate`: 1 for the tokens that its policy part trains, and the weight of each one's entropy in
the bonus."""


def highest(entropies: Sequence[NDArray[np.floating]], share: float) -> list[NDArray[np.bool_]]:
    """The tokens of each sequence whose entropy is at or above the quantile 1 - `share` of all of them (Wang et al.,
    2025, arXiv:2506.01939, eq. 6), the quantile by linear interpolation.

    Args:
        entropies: (T,) of each sequence, in nats.
        share: of the tokens; 0 leaves the highest ones.
    """
    values = [np.asarray(entropy, dtype=np.float64) for entropy in entropies]
    every = np.concatenate(values) if values else np.zeros(0)
    bound = float(np.quantile(every, 1.0 - share)) if len(every) else 0.0
    return [of_sequence >= bound for of_sequence in values]


class EntropyBonus:
    """The weight of the entropy in the loss: the same all the time, or with a target as Skywork-OR1 steers it (He et
    al., 2025, arXiv:2505.22312, section 4): after a step whose entropy is not above the target it grows by a delta,
    else it shrinks by as much, between bounds; and it counts only in a step that follows one of the former.

    Args:
        options: `entropy_coef` is where it begins.
    """

    def __init__(self, options: RolloutOptions) -> None:
        self._options = options
        self._coef, self._entropy = options.entropy_coef, float("inf")

    @property
    def steered(self) -> bool:
        """Whether there is a target."""
        return self._options.entropy_target is not None

    @property
    def coef(self) -> float:
        """The coefficient for the next step."""
        target = self._options.entropy_target
        return self._coef if target is None or self._entropy <= target else 0.0

    def see(self, entropy: float) -> dict[str, float]:
        """The mean entropy of a step's tokens, in nats; numbers to report."""
        options, target = self._options, self._options.entropy_target
        if target is None:
            return {}
        delta = options.entropy_coef_delta if entropy <= target else -options.entropy_coef_delta
        self._coef = min(max(self._coef + delta, options.entropy_coef_min), options.entropy_coef_max)
        self._entropy = entropy
        return {"entropy_coef": self._coef}

    def state(self) -> Mapping[str, float]:
        """JSON, whose numbers come back bit for bit; empty before the first step."""
        return {} if self._entropy == float("inf") else {"coef": self._coef, "entropy": self._entropy}

    def restore(self, state: Mapping[str, float]) -> None:
        """What `state` gave."""
        if state:
            self._coef, self._entropy = float(state["coef"]), float(state["entropy"])


@dataclass(frozen=True)
class Weighed:
    """Data of a step with the fields that follow from their entropies.

    Attributes:
        data: with the fields `MASK` and `BONUS`, where they are needed.
        entropy: mean of the tokens that the mask leaves, in nats; None where nobody asked for it.
        flops: that it took to ask.
    """

    data: list[Datum]
    entropy: float | None = None
    flops: float = 0.0


def weighed(engine: Engine, data: Sequence[Datum], options: RolloutOptions, bonus: EntropyBonus) -> Weighed:
    """The data of an optimizer step with the tokens that train and the weights of the bonus, both counted over the
    whole step, so that no layout changes them.

    Args:
        engine: before the step; with `top_entropy_quantile` it is asked for the entropies first.
    """
    share, entropy, flops = options.top_entropy_quantile, None, 0.0
    if share == 1 and not bonus.steered:
        return Weighed(list(data))
    masks = [datum.mask for datum in data]
    if share < 1:
        scored = request_outputs(engine, data, ("entropy",), options)
        flops = scored.flops
        own = [outputs["entropy"][datum.mask] for datum, outputs in zip(data, scored.outputs, strict=True)]
        masks = [datum.mask.copy() for datum in data]
        for mask, high in zip(masks, highest(own, share), strict=True):
            mask[mask] = high
        trained = [outputs["entropy"][mask] for mask, outputs in zip(masks, scored.outputs, strict=True)]
        entropy = float(np.mean(np.concatenate(trained), dtype=np.float64))
    count = sum(int(mask.sum()) for mask in masks)
    each = bonus.coef / max(count, 1)
    weighted = []
    for datum, mask in zip(data, masks, strict=True):
        fields = {**datum.fields, MASK: mask.astype(np.float64)}
        if bonus.steered or options.entropy_coef:
            fields[BONUS] = np.where(mask, each, 0.0)
        weighted.append(replace(datum, fields=fields))
    return Weighed(weighted, entropy, flops)
