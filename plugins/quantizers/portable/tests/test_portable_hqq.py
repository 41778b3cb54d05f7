"""`hqq` against the half-quadratic rounds of its paper, written out in float64, and against `int4`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_portable.modules import FORMS
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def weights(outputs: int = 48, inputs: int = 128) -> Numbers:
    """Most are small, and some are far off."""
    rng = np.random.default_rng(3)
    return np.asarray(rng.standard_t(3, (outputs, inputs)), np.float32).astype(np.float64)


def bf16(of: Numbers) -> Numbers:
    return torch.tensor(of).bfloat16().double().numpy()


def by_hand(groups: Numbers) -> Numbers:
    """Equations 3 to 6: e = shrink(w - r), then the minimum that fits w - e best; the best round of all."""
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    minimum = bf16(low)
    scale = bf16((high - minimum) / 15)
    best, least, beta = minimum, np.full(low.shape, np.inf), 10.0
    for _ in range(20):
        codes = np.clip(np.round((groups - minimum) / scale), 0, 15)
        error = groups - codes * scale - minimum
        norm = (np.abs(error) ** 0.7).mean(-1, keepdims=True)
        best, least = np.where(norm < least, minimum, best), np.minimum(norm, least)
        size = np.maximum(np.abs(error), 1e-12)
        shrunk = np.sign(error) * np.maximum(np.abs(error) - size**-0.3 / beta, 0)
        minimum, beta = bf16((groups - codes * scale - shrunk).mean(-1, keepdims=True)), beta * 1.01
    return np.clip(np.round((groups - best) / scale), 0, 15) * scale + best


@pytest.mark.parametrize("group", [32, 64])
def test_it_is_what_the_paper_says_and_nearer_by_its_norm(group: int) -> None:
    weight = weights()
    module = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
    read = {name: FORMS[name](module, group).dequantised(torch.float64).numpy() for name in ("hqq", "int4")}  # type: ignore[index]
    expected = by_hand(weight.reshape(len(weight), -1, group)).reshape(weight.shape)
    same = np.isclose(read["hqq"], expected, rtol=1e-5, atol=1e-6).mean()
    assert same > 0.99, "what fp32 rounds to another code is the exception"
    off = {name: float((np.abs(of - weight) ** 0.7).mean()) for name, of in read.items()}
    assert off["hqq"] < 0.995 * off["int4"], off
