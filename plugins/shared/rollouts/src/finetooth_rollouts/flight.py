"""Rollouts in flight: a batch that was sampled and is not trained to its end, as a part of a method's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from finetooth_hooks.rollouts import Rollout
from numpy.typing import NDArray

from finetooth_rollouts.rollouts_file import as_json, from_json


@dataclass
class Flight:
    """A batch of rollouts.

    Attributes:
        parts: what each optimizer step trains.
        old: of each part the log-probabilities of each rollout's targets under the weights that sampled it, in the
            data's shape; empty where the only step has them itself.
        steps: optimizer steps that it is trained in.
        done: of them, the one that is under way included.
        metrics: of the batch.
        flops: that sampling and scoring took, not yet reported.
        epoch: passes over the prompts done with it.
    """

    parts: list[list[Rollout]]
    old: list[list[NDArray[np.float32]]]
    steps: int
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    epoch: float = 0.0

    @property
    def rollouts(self) -> list[Rollout]:
        """All of them, in order."""
        return [rollout for part in self.parts for rollout in part]

    def state(self) -> dict[str, Any]:
        """JSON and arrays; numbers come back bit for bit."""
        return {
            "parts": [[as_json(rollout) for rollout in part] for part in self.parts],
            "old": [[_read_only(array) for array in part] for part in self.old],
            "steps": self.steps,
            "done": self.done,
            "metrics": self.metrics,
            "flops": self.flops,
            "epoch": self.epoch,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Flight:
        """What `state` gave."""
        return cls(
            [[from_json(rollout) for rollout in part] for part in state["parts"]],
            [list(part) for part in state["old"]],
            int(state["steps"]),
            int(state["done"]),
            dict(state["metrics"]),
            float(state["flops"]),
            float(state["epoch"]),
        )


def _read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    view = array.view()
    view.flags.writeable = False
    return view


def split(rollouts: Sequence[Rollout], groups: Sequence[slice], parts: int) -> list[list[Rollout]]:
    """Whole groups in `parts` nearly equal parts; fewer where there are fewer groups."""
    parts = min(parts, len(groups))
    bounds = [round(i * len(groups) / parts) for i in range(parts + 1)]
    return [[rollout for group in groups[low:high] for rollout in rollouts[group]] for low, high in pairwise(bounds)]
