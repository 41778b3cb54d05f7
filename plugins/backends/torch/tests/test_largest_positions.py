"""The largest micro-batch that a plan counts with, beside what steps of such data take."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_torch.planning.layer_memory import HeldByAttention
from finetooth_torch.planning.memory import tokens_at_once
from finetooth_torch.planning.row_sharing import largest_positions

DATA = np.sort(np.clip(np.random.default_rng(5).lognormal(5.2, 0.4, 2000), 8, 512)).astype(int)
LENGTHS = tuple(int(one) for one in np.quantile(DATA, np.linspace(0, 1, 65)))
STEPS, BATCH = 200, 8


@pytest.mark.parametrize("filling", [None, "stream", "rows"])
@pytest.mark.parametrize("steps", [2, 20, None])
def test_it_is_what_steps_of_such_data_take(filling: Any, steps: int | None) -> None:
    """Beside the median of many runs: the longest of a step as often as it has rows, or what is in them."""
    runs = np.random.default_rng(11).choice(DATA, (100, steps or STEPS, BATCH))
    padded, used = np.median((BATCH * runs.max(2)).max(1)), np.median(runs.sum(2).max(1))
    found = largest_positions(LENGTHS, BATCH, 10**6, filling, steps=steps)
    if filling == "rows":  # less than padded, no less than what is in them
        assert 0.95 * used <= found <= padded
    else:
        assert found == pytest.approx(padded if filling is None else used, rel=0.1)


def test_the_plan_counts_with_it_where_lengths_are_known(kit: SimpleNamespace) -> None:
    facts = ModelFacts(64, 2, 4, 2, 16, 128, 500, 512, "model.layers", "model", Head(), (), (), "plain")
    given = kit.plan_request(facts)
    given = replace(given, train=replace(given.train, batch_size=BATCH))
    data = replace(given.data, longest=512, mean_length=float(DATA.mean()), lengths=LENGTHS)
    held = HeldByAttention(masked=True, filling="rows")
    known = tokens_at_once(replace(given, data=data), 4096, packed=False, held=held)
    assert DATA.mean() * BATCH < known < 3000 < 4096
    assert tokens_at_once(replace(given, data=data), 4096, packed=False) == 4096
    assert tokens_at_once(replace(given, data=replace(data, lengths=())), 4096, packed=False, held=held) == 4096
    pairs = tokens_at_once(replace(given, data=replace(data, of_a_row=2.0)), 4096, packed=False, held=held)
    assert pairs > 0.95 * 4096 > known
    small = tokens_at_once(replace(given, data=data), 1024, packed=False, held=held)
    assert 512 <= small <= 1024
