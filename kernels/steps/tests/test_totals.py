"""However a step is cut into calls and micro-batches, its loss, components, metrics and gradient are those of the
whole, by formula in float64; and what cannot be added up is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Contribution, Datum, EngineError, LossResult, LossSpec, LossTotals, Metric
from finetooth_hooks import arrays as xp
from finetooth_kit.losses import MIXED, mixed_by_hand
from finetooth_steps.layout import lay_out
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.outputs import per_datum, side_by_side
from finetooth_steps.rectangles import loss_data
from finetooth_steps.totals import Totals, merge_totals
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Datum], list[np.ndarray], list[list[int]]]:
    """Data in groups of one to three, log-probabilities, and the indices that each call takes: whole groups, in any
    order."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    data: list[Datum] = []
    for number, size in enumerate(sizes):
        for _ in range(size):
            weights = random.choice([0.0, 0.0, 0.5, 1.0, 2.0], size=random.integers(2, 12))
            data.append(Datum.from_tokens([1] * len(weights), list(weights), group=f"{number}", id=f"row:{len(data)}"))
    logprobs = [np.where(datum.mask, -random.exponential(size=len(datum)), 0.0) for datum in data]
    call_of = [draw(st.integers(0, 3)) for _ in sizes]
    calls = [[i for i, datum in enumerate(data) if call_of[int(datum.group or 0)] == call] for call in range(4)]
    return data, logprobs, [call for call in draw(st.permutations(calls)) if call]


def whole(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> Any:
    """The loss of the step by formula."""
    weights = [np.asarray(datum.fields["weights"], dtype=np.float64) for datum in data]
    return mixed_by_hand(logprobs, [datum.mask for datum in data], weights, [datum.group or "" for datum in data])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(steps(), st.integers(1, 60))
def test_merged_calls_are_the_loss_of_the_step(library: str, step: Any, budget: int) -> None:
    data, logprobs, calls = step
    convert = np.asarray if library == "numpy" else torch.from_numpy
    counts = count_normalizers(data)
    found, losses = [], []
    slopes: dict[int, np.ndarray] = {}
    for call in calls:
        part = [data[i] for i in call]
        totals = Totals(MIXED, counts)
        for batch in lay_out(part, budget=budget, together="group"):
            outputs: Any = convert(side_by_side(batch, [logprobs[i] for i in call]))
            if library == "torch":
                outputs.requires_grad_()
            result = MIXED.fn({"logprobs": outputs}, loss_data(part, batch, convert), {})
            objective = totals.add(result, convert(np.zeros(())))
            if library == "torch":
                objective.backward()
                slopes |= {call[i]: slope for i, slope in per_datum(part, batch, outputs.grad).items()}
        found.append(totals.plain)
        losses.append(totals.loss)
    merged = merge_totals(found, counts)
    loss, components, metrics = whole(data, logprobs)
    near: dict[str, Any] = {"rel": 1e-12, "abs": 1e-12}
    assert (merged.loss, sum(losses)) == (pytest.approx(loss, **near), pytest.approx(loss, **near))
    assert merged.components == pytest.approx(components, **near)
    assert merged.metrics == pytest.approx(metrics, **near)
    assert merge_totals([merged.totals], counts) == merged
    if library == "torch":
        for i, expected in enumerate(_slopes(data, logprobs)):
            np.testing.assert_allclose(slopes[i], expected, rtol=1e-10, atol=1e-12)


def _slopes(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """dL/dlogprob of `mixed` by hand."""
    counts = count_normalizers(data)
    sums = [lp[datum.mask].sum() for datum, lp in zip(data, logprobs, strict=True)]
    found = []
    for datum, lp, own in zip(data, logprobs, sums, strict=True):
        group = sum(total for other, total in zip(data, sums, strict=True) if other.group == datum.group)
        of_tokens = 0.25 * 2 * lp / max(counts["tokens"], 1)
        of_sums = 0.5 * 2 * own / max(counts["sequences"], 1) - 0.125 * 2 * group / counts["groups"] + 0.0625
        of_weights = -datum.fields["weights"].astype(np.float64) / (counts["weights"] or 1.0)
        found.append(np.where(datum.mask, of_weights + of_tokens + of_sums, 0.0))
    return found


@given(steps(), st.integers(1, 60))
def test_side_by_side_and_per_datum_undo_each_other(step: Any, budget: int) -> None:
    data, logprobs, _ = step
    for batch in lay_out(data, budget=budget):
        rectangle = side_by_side(batch, logprobs)
        assert rectangle.shape == (len(batch.rows), batch.width)
        for index, back in per_datum(data, batch, rectangle).items():
            np.testing.assert_array_equal(back, logprobs[index])  # 0 behind what was computed
    (each,) = lay_out(data, budget=10**6)
    numbers = {i: np.asarray(float(i)) for i in range(len(data))}
    assert side_by_side(each, numbers).tolist() == [float(row) for row in each.rows]
    assert per_datum(data, each, side_by_side(each, numbers)) == numbers


def test_a_constant_takes_the_type_of_the_engine() -> None:
    for dtype in (torch.float32, torch.float64):
        totals = Totals(LossSpec("a:b", MIXED.fn), {"weights": 3.0})
        parts = {"number": Contribution(0.1, "none"), "numpy": Contribution(np.float32(0.25))}
        assert totals.add(LossResult(parts), torch.zeros((), dtype=dtype)).dtype == dtype
        assert totals.components["number"] == torch.tensor(0.1, dtype=dtype).item()
        assert totals.plain.contributions["numpy"] == Contribution(0.25, "weights", 1.0)


def test_a_mean_over_nothing_is_left_out_until_something_counts() -> None:
    none = LossTotals("a:b", metrics={"m": Metric(0.0, 0.0), "most": Metric(1.0, 1.0, "max")})
    some = LossTotals("a:b", metrics={"m": Metric(3.0, 2.0), "most": Metric(-1.0, 1.0, "max")})
    assert merge_totals([none, none], {}).metrics == {"most": 1.0}
    assert merge_totals([some, none], {}).metrics == merge_totals([none, some], {}).metrics == {"m": 1.5, "most": 1.0}


def test_what_cannot_be_added_up_is_refused() -> None:
    def of(name: str, **part: Any) -> LossTotals:
        return LossTotals(name, {"c": Contribution(1.0, **part)})

    counts = {"weights": 2.0, "tokens": 4.0}
    for several, words in (
        ([], "the totals of no call cannot be merged"),
        ([of("a:b"), of("a:c")], "the totals of the losses a:b, a:c cannot be merged"),
        (
            [of("a:b"), of("a:b", per="tokens")],
            "'a:b' gives its component 'c' per weights with weight 1, and per tokens",
        ),
        ([of("a:b"), of("a:b", weight=0.5)], "and per weights with weight 0.5, in one step"),
        ([of("a:b", per="groups")], "normalises by 'groups', which the normalizer given does not hold"),
    ):
        with pytest.raises(EngineError, match=words):
            merge_totals(several, counts)
    with pytest.raises(EngineError, match="'a:b' returned no contribution"):
        Totals(LossSpec("a:b", MIXED.fn), counts).add(LossResult({}), np.zeros(()))


def test_totals_come_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many micro-batches there were: a read waits for the device."""
    reads: list[int] = []
    to_numpy, item = xp.to_numpy, xp.item
    monkeypatch.setattr(xp, "to_numpy", lambda x: reads.append(1) or to_numpy(x))
    monkeypatch.setattr(xp, "item", lambda x: reads.append(1) or item(x))
    totals = Totals(LossSpec("l", lambda *_: None), {"tokens": 4.0})  # type: ignore[arg-type, return-value]
    for number in (0.1, 0.2, float("inf")):
        total = torch.tensor(number, requires_grad=True)
        result = LossResult({"l": Contribution(total, "tokens")}, {"m": Metric(total * 2, 1, "mean")})
        assert totals.add(result, total).requires_grad
        if number == 0.2:
            assert reads == []
            assert totals.loss == float(np.float32(0.1) / 4) + float(np.float32(0.2) / 4)
            assert totals.metrics["m"] == pytest.approx(0.3)
            assert totals.finite and totals.plain.contributions["l"].total == pytest.approx(0.3)
            assert reads == [1]
    assert not totals.finite and reads == [1, 1]
