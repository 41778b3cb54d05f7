"""`best_of_n` end to end: the step is cross entropy of the answers that were kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_rollouts.rollouts_file import read_rollouts


def test_the_loss_is_cross_entropy_of_what_is_kept(online_recipe: Callable[..., Any]) -> None:
    """Two steps on each batch, of which one has nothing to learn where its groups are all alike. The loss of a first
    step is minus the mean of what the sampler says of the kept tokens, which no formula of the method has a part in."""
    method = {"name": "best_of_n", "num_generations": 4, "max_completion_length": 8, "keep": 2, "mini_batches": 2}
    given = online_recipe(method, {"batch_size": 4, "max_steps": 4})()
    assert finetooth.run(given).steps == 4
    folder = Path(given["output"])
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    steps = dict(read_rollouts(folder))
    assert sorted(steps) == [1, 3]
    for step, of in steps.items():
        first = of[:8]  # two groups of four are the first of two steps
        kept = [one for one in first if any(one.advantages)]
        assert len(kept) == 4 and {one.advantages[0] for one in kept} == {1.0}
        expected = -np.mean([value for one in kept for value in one.logprobs])
        assert losses[step - 1] == pytest.approx(expected, rel=1e-4)
        for group in (first[:4], first[4:]):
            chosen = [one.reward or 0.0 for one in group if any(one.advantages)]
            assert sorted(chosen) == sorted(one.reward or 0.0 for one in group)[-2:]
