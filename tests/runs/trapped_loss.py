"""A local plugin: cross entropy that goes wrong on rows of certain lengths, and sends its process a signal on others.

    60 targets or more    the loss is NaN
    50 to 59              its gradient is not finite
    40 to 49              the signals in the file `signals` are sent, once: the file is removed

With `noise` it also draws from the global generators of Python, NumPy and torch, as a user's loss may.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetooth_hooks import Loss, LossResult, Options, hookimpl
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossData


@hookimpl
def ft_losses() -> Iterator[Loss]:
    yield Loss(name="trapped", build=f"{__name__}:build", together="sequence")
    yield Loss(name="trapped_step", build=f"{__name__}:build", together="step")


class TrappedOptions(Options):
    folder: str
    """Where `signals` may lie."""
    noise: bool = False
    """Draw."""


def build(options: TrappedOptions, context: Any) -> Any:
    def trapped(outputs: Any, data: LossData, state: Any) -> LossResult:
        import numpy as np
        import torch

        scores = xp.where(data.mask, outputs["logprobs"], 0.0)
        sums, lengths = xp.sum(scores, axis=1), xp.sum(xp.astype_like(data.mask, scores), axis=1)
        drawn = random.random() + np.random.random() + float(torch.rand(())) if options.noise else 0.0
        total = -xp.sum(sums) * (1.0 + 1e-2 * drawn)
        total = total + xp.sum(xp.where(lengths >= 60, float("nan"), 0.0))
        cliff = xp.logical_and(lengths >= 50, lengths < 60)
        if xp.item(xp.max(xp.astype_like(cliff, scores))):
            total = total + xp.sum(xp.sqrt(xp.where(cliff, sums - xp.stop_gradient(sums), 1.0)))
        signals = Path(options.folder) / "signals"
        marked = xp.logical_and(lengths >= 40, lengths < 50)
        if signals.exists() and xp.item(xp.max(xp.astype_like(marked, scores))):
            numbers = json.loads(signals.read_text(encoding="utf-8"))
            signals.unlink()
            for number in numbers:
                os.kill(os.getpid(), number)
        return LossResult({"nll": Contribution(total, per="tokens")})

    return trapped
