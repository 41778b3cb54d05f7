"""The largest micro-batch that a plan counts with, beside what steps of such data take."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_steps.layout import SHORTEST_SHARED, lay_out
from finetooth_torch.layout.rectangles import make_rectangle
from finetooth_torch.layout.stream import make_stream
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


@pytest.mark.parametrize(("dropout", "noise"), [(False, 0.0), (True, 0.0), (False, 5.0)])
def test_what_all_rows_begin_with_is_counted_once_in_a_stream(
    kit: SimpleNamespace, *, dropout: bool, noise: float
) -> None:
    """Beside the stream that such rows make; as often as there are rows where what a row adds is drawn."""
    begins, rests = 40, np.full(BATCH, 25)
    rows = [np.concatenate([np.arange(begins), 100 * (n + 1) + np.arange(rest)]) for n, rest in enumerate(rests)]
    apart = dropout or noise > 0
    data = [Datum.from_tokens(np.append(row, 1)) for row in rows]
    rectangle = make_rectangle(data, lay_out(data, budget=10**4)[0], pad_id=0, device=torch.device("cpu"))
    taken = len(make_stream(rectangle, share=not apart))
    facts = ModelFacts(64, 2, 4, 2, 16, 128, 500, 512, "model.layers", "model", Head(), (), (), "plain")
    given = kit.plan_request(facts)
    about = replace(given.data, longest=65, mean_length=65.0, length_deviation=0.0, beginning=begins)
    trains = replace(given.trains, adapter=SimpleNamespace(capabilities={"draws"} if dropout else set()))
    train = replace(given.train, batch_size=BATCH, embedding_noise=noise or None)
    asked = replace(given, data=about, trains=trains, train=train)
    assert tokens_at_once(asked, 10**4, packed=True) == taken
    assert taken == 65 * BATCH - (0 if apart else begins * (BATCH - 1))
    pairs = replace(asked, data=replace(about, of_a_row=2.0))  # a preference pair is two data
    assert tokens_at_once(pairs, 10**4, packed=True) == 65 * 2 * BATCH - (0 if apart else begins * (2 * BATCH - 1))
    few = replace(asked, data=replace(about, beginning=SHORTEST_SHARED - 1))
    assert tokens_at_once(few, 10**4, packed=True) == 65 * BATCH
    halves = tokens_at_once(asked, 65 * BATCH // 2, packed=True)  # two micro-batches
    assert halves == 65 * BATCH // 2 - (0 if apart else begins * (BATCH // 2 - 1))
