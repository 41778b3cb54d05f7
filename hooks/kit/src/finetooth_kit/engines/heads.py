"""Checks of a scalar head: its values, its scores, its gradients, and that it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.engine import Engine
from numpy.typing import NDArray

from finetooth_kit.checks import expect
from finetooth_kit.engines.cases import EngineCase, all_close, close, masked
from finetooth_kit.losses import CENTRED_SCORES, SCORE_PAIRS, VALUE_DISTANCE, WEIGHTED_NLL

Values = list[NDArray[np.float64]]


def _outputs(engine: Engine, data: Sequence[Datum]) -> tuple[Values, NDArray[np.float64]]:
    """Values (N,) of each datum, and all scores (S,)."""
    outputs = engine.forward(data, returns=("values", "scores")).outputs
    values = [np.asarray(each["values"], dtype=np.float64) for each in outputs]
    return values, np.array([float(each["scores"]) for each in outputs])


def values_are_where_the_mask_is(case: EngineCase) -> None:
    """One number a position, 0 where the mask is false; the score is the last of them, 0 where nothing counts."""
    engine, data = case.engine("head"), case.data()
    data = [*data, replace(masked(data[2], np.zeros(len(data[2]), dtype=bool)), group=None)]
    values, scores = _outputs(engine, data)
    for datum, of, score in zip(data, values, scores, strict=True):
        called = f"forward(data, returns=('values', 'scores')) of {datum.id}"
        expect(of.shape == (len(datum),), called, f"values of shape {of.shape}", f"({len(datum)},)")
        expect(np.isfinite(of).all(), called, of, "finite values")
        expect((of[~datum.mask] == 0).all(), called, of[~datum.mask], "0 where the mask is false")
        expect((of[datum.mask] != 0).all(), called, of[datum.mask], "a number where it is true")
        last = of[datum.mask][-1] if datum.mask.any() else 0.0
        expect(score == last, called, f"score {score}", f"{last}, the value at the last position that counts")


def values_do_not_depend_on_the_mask(case: EngineCase) -> None:
    """A value is its position's own: the mask selects, neighbours and what comes later change nothing."""
    engine, data = case.engine("head"), case.data()
    every = [masked(datum, np.ones(len(datum), dtype=bool)) for datum in data]
    whole, _ = _outputs(engine, every)
    some, _ = _outputs(engine, data)
    wanted = [np.where(datum.mask, of, 0.0) for datum, of in zip(data, whole, strict=True)]
    all_close(engine, "values", some, wanted, "those with every position counting")
    alone = [_outputs(engine, [datum])[0][0] for datum in every]
    all_close(engine, "values of the whole batch", whole, alone, "each datum alone")
    short = Datum((TokenChunk(every[0].tokens[:4]),), every[0].targets[:4], id="kit:short")
    close(engine, "values of the first 4 positions", _outputs(engine, [short])[0][0], whole[0][:4], "as in the whole")


def losses_read_the_head(case: EngineCase) -> None:
    """Losses over scores of pairs, over values, and over the scores of a whole step have the value of their formula,
    and their gradients lead down."""
    data = case.data()
    engine = case.engine("head")
    values, scores = _outputs(engine, data)
    counted = np.concatenate([of[datum.mask] for datum, of in zip(data, values, strict=True)])
    for spec, wanted in (
        (SCORE_PAIRS, float(np.mean(np.logaddexp(0.0, scores[1::2] - scores[0::2])))),
        (VALUE_DISTANCE, float(np.mean((counted - 1.0) ** 2))),
        (CENTRED_SCORES, float(np.mean((scores - scores.mean() - 1.0) ** 2))),
    ):
        fresh = case.engine("head")
        result = fresh.forward_backward(data, spec)
        close(fresh, f"forward_backward(data, {spec.name}).loss", result.loss, wanted, "its formula over the outputs")
        fresh.step()
        after = fresh.forward(data, spec, returns=()).loss
        expect(after is not None and after < wanted, f"{spec.name}, loss after a step", after, f"less than {wanted}")


def layout_does_not_change_a_head(case: EngineCase) -> None:
    """Data in two calls with the totals of the step, and in one: the same gradient through the head."""
    if "zero_grad" not in case.engine("head").capabilities:
        return
    data = case.data()
    whole, cut = case.engine("head"), case.engine("head")
    whole.forward_backward(data, SCORE_PAIRS)
    for part in (data[:2], data[2:]):
        cut.forward_backward(part, SCORE_PAIRS, normalizer={"groups": 3.0})
    norms = [each.step().grad_norm for each in (whole, cut)]
    close(whole, "grad_norm of a step in two calls", norms[1], norms[0], "that of one call", factor=10.0)
    all_close(
        whole, "values after it", _outputs(cut, data)[0], _outputs(whole, data)[0], "those after a step of one call"
    )


def a_head_is_kept(case: EngineCase) -> None:
    """The head trains, and comes back with `save` and `load` and with `export` and `restore`; log-probabilities know
    nothing of it."""
    engine, data = case.engine("head"), case.data()
    fresh, _ = _outputs(engine, data)
    for _ in range(2):
        engine.forward_backward(data, VALUE_DISTANCE)
        engine.step()
    wanted, _ = _outputs(engine, data)
    moved = max(float(np.abs(a - b).max()) for a, b in zip(wanted, fresh, strict=True))
    expect(moved > 1e-6, "values after 2 steps", f"moved by {moved}", "other ones")
    engine.save(case.folder / "headed")
    other = case.engine()
    other.load(case.folder / "headed")
    all_close(engine, "values after save and load", _outputs(other, data)[0], wanted, "those that were saved")
    engine.export(case.folder / "exported")
    third = case.engine()
    third.restore(case.folder / "exported")
    all_close(engine, "values after export and restore", _outputs(third, data)[0], wanted, "those that were exported")
    result = third.forward_backward(data, WEIGHTED_NLL)
    expect(result.loss is not None, "forward_backward(data, cross entropy) with a head", None, "a loss")


CHECKS = (
    values_are_where_the_mask_is,
    values_do_not_depend_on_the_mask,
    losses_read_the_head,
    layout_does_not_change_a_head,
    a_head_is_kept,
)
