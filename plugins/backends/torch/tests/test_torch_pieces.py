"""Feed-forward blocks in pieces: the same numbers, less held at once, and what the plan says of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_torch.decoder.pieces import Pieces
from finetooth_torch.draws import Draws
from finetooth_torch.planning.decisions import decide
from finetooth_torch.planning.memory import estimate
from finetooth_torch.planning.offload import Offload


def passed(kit: SimpleNamespace, pieces: int, **settings: Any) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Loss, gradients and scores of one step in float64."""
    engine = kit.engine(precision="fp64", options={"feed_forward_tokens": pieces}, **settings)
    data = kit.data(6)
    result = engine.forward_backward(data, kit.nll)
    return float(result.loss), kit.gradients(engine), np.concatenate(engine.logprobs(data))


@pytest.mark.parametrize(("recomputes", "full"), [(False, True), (True, False), (True, True)])
def test_pieces_change_no_number(kit: SimpleNamespace, recomputes: bool, full: bool) -> None:
    """Dropout, too, is what it is for a whole row: each piece draws what its positions draw."""
    settings = {"gradient_checkpointing": recomputes, "can_disable": not full}
    adapter = kit.adapter(full=True) if full else kit.adapter(dropout=0.3)
    loss, gradients, scores = passed(kit, 0, adapter=adapter, **settings)
    other, others, again = passed(kit, 7, adapter=kit.adapter(full=full, dropout=0.0 if full else 0.3), **settings)
    assert other == pytest.approx(loss, rel=1e-10)
    assert kit.relative(others, gradients) < 1e-10
    np.testing.assert_allclose(again, scores, rtol=1e-10, atol=1e-10)


def test_no_more_than_a_piece_is_held() -> None:
    """Of a function eight times as wide as its rows, what autograd keeps is the rows themselves."""
    kept: list[int] = []
    rows = torch.randn(64, 4, dtype=torch.float64, requires_grad=True)
    wide = torch.randn(4, 32, dtype=torch.float64)
    largest: list[int] = []

    def compute(rows_nd: torch.Tensor) -> torch.Tensor:
        largest.append(len(rows_nd))
        return torch.tanh(rows_nd @ wide).square() @ wide.T

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = Pieces(16, Draws(torch.device("cpu")))(compute, rows)
    assert largest == [16] * 4 and 32 not in kept
    (gradient,) = torch.autograd.grad(made.sum(), rows)
    (whole,) = torch.autograd.grad(compute(rows).sum(), rows)
    torch.testing.assert_close(gradient, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stream", [True, False])
def test_the_plan_counts_what_pieces_save(kit: SimpleNamespace, stream: bool) -> None:
    """A layer of a long row that is computed again holds the width of the residual stream and of attention alone."""
    facts = kit.facts(kit.config(hidden_size=64, intermediate_size=512))
    short = kit.plan_request(facts)
    request = replace(short, data=replace(short.data, longest=65_536))

    def activations(pieces: int) -> int:
        offload = Offload(pieces=pieces)
        taken = estimate(request, "fp32", 65_536, checkpointing=True, stream=stream, offload=offload)
        return taken.parts["activations"]

    saved = activations(0) - activations(2048)
    of_a_token = 4 * 512 * (8 if stream else 4)
    assert saved >= (65_536 - 8192) * of_a_token
    assert activations(2048) < activations(4096) < activations(0)
    plan = decide(short, "auto", context=kit.context, offload=Offload(pieces=2048))
    said = {one.setting: one for one in plan.decisions}["backend.feed_forward_tokens"]
    assert said.value == 2048 and "once more" in said.reason


def test_a_family_that_says_no_block_is_refused(kit: SimpleNamespace) -> None:
    request = kit.plan_request(replace(kit.facts(kit.config()), block=None))
    with pytest.raises(PlanError, match=r"backend\.feed_forward_tokens: the model's family does not say"):
        decide(request, "auto", context=kit.context, offload=Offload(pieces=2048))
