"""Log-probabilities among the tokens that sampling kept, beside a softmax over the masked vocabulary."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from finetooth_hooks.rollouts import Rollout
from finetooth_modelfiles.schemas import drawn_among
from finetooth_rollouts.data import data_of
from finetooth_rollouts.kept import renormalised
from finetooth_rollouts.rollouts_file import as_json, from_json

VOCABULARY, LENGTH = 60, 7


def rollout_of(logits: torch.Tensor, allowed: np.ndarray) -> Rollout:
    """A rollout whose tokens are drawn among those allowed, (T, V) both."""
    kept = tuple(drawn_among(*row, 0.7) for row in zip(allowed, logits.numpy(), strict=True))
    tokens = tuple(int(np.flatnonzero(row)[-1]) for row in allowed)
    return Rollout("a", "a@1", (1, 2), tokens, (0.0,) * LENGTH, (0,) * LENGTH, "", "stop", kept=kept)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.95, "mixed"])
@pytest.mark.parametrize("unlikely", [0.0, 9.0], ids=["", "unlikely"])
def test_values_and_gradients_are_those_of_a_masked_softmax(share: float | str, unlikely: float) -> None:
    """Whether a set is written by what it has or by what it lacks; sets that have little probability are written by
    what they have."""
    random = np.random.default_rng(5)
    shares = np.linspace(0.05, 1, LENGTH) if share == "mixed" else np.full(LENGTH, share)
    allowed = random.random((LENGTH, VOCABULARY)) < shares[:, None]
    allowed[:, 3] = True
    given = torch.from_numpy(random.normal(size=(LENGTH, VOCABULARY)) * 2 - unlikely * allowed)
    rollout = rollout_of(given, allowed)
    lacking = [bool(ids) and ids[0] < 0 for ids in rollout.kept]
    assert any(lacking) == (share in (0.95, "mixed") and not unlikely)
    assert from_json(json.loads(json.dumps(as_json(rollout)))) == rollout

    (datum,) = data_of([rollout], [1.0])
    targets, kept = (torch.from_numpy(of[datum.mask]) for of in (datum.targets, datum.fields["kept"]))
    ours = given.clone().requires_grad_()
    logprobs = torch.log_softmax(ours / 0.7, -1).gather(-1, targets)
    found = renormalised(logprobs, kept)
    theirs = given.clone().requires_grad_()
    masked = torch.log_softmax((theirs / 0.7).masked_fill(~torch.from_numpy(allowed), -torch.inf), -1)
    expected = masked[torch.arange(LENGTH), list(rollout.tokens)]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.from_numpy(random.normal(size=LENGTH))
    slopes = [torch.autograd.grad((of * weights).sum(), at)[0] for of, at in ((found, ours), (expected, theirs))]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-10)


def test_files_of_earlier_runs_are_read() -> None:
    """They have the ids of each token."""
    rollout = Rollout("a", "a@1", (1,), (5, 6), (-0.5, -0.1), (0, 0), "", "stop", kept=((5, 9), (6,)))
    content = as_json(rollout)
    sets = content.pop("kept_sets")
    assert from_json({**content, "kept": [sets[place] for place in content["kept"]]}) == rollout
