"""Texts that two tokenizers cut, and probabilities in the order of size, against sums written out in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from finetooth_distillation.universal import aligned, greatest, sorted_probabilities, starts
from finetooth_hooks import LossData

TEXT = "The cat, naïve, 東京 sat 😀."


class Cuts:
    """A tokenizer of bytes, so many to a token; as others, it spells half a character as a mark."""

    def __init__(self, sizes: Sequence[int]) -> None:
        content, self.pieces, place = TEXT.encode(), list[bytes](), 0
        while place < len(content):
            size = sizes[len(self.pieces) % len(sizes)]
            self.pieces.append(content[place : place + size])
            place += size

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("sizes", [((1,), (3,)), ((2, 3), (4, 1)), ((5,), (5,)), ((1,), (1,))])
def test_places_are_those_before_which_both_have_read_the_same(sizes: Any) -> None:
    """By bytes: a token begins with a character, and after the same bytes as one of the other's."""
    cuts = [Cuts(of) for of in sizes]
    begins: list[dict[int, int]] = []
    for cut in cuts:
        at, found = 0, {}
        for place, piece in enumerate(cut.pieces):
            found[at] = place
            at += len(piece)
        begins.append(found)
    whole = [at for at in begins[0] if at in begins[1] and (TEXT.encode()[at] & 0xC0) != 0x80]
    own, theirs = aligned(*(starts(range(len(cut.pieces)), cut) for cut in cuts))  # type: ignore[arg-type]
    assert own == [begins[0][at] for at in whole] and theirs == [begins[1][at] for at in whole]
    assert len(own) > 3


def test_the_loss_is_the_distance_of_sorted_probabilities() -> None:
    """Vocabularies of 9 and of 7 tokens; with 3 of the greatest and all others as one it is at most as large."""
    random = np.random.default_rng(4)
    z, q = random.normal(size=(2, 3, 9)), random.normal(size=(2, 3, 7))
    mask = np.array([[True, True, False], [True, True, True]])
    weights, counted = random.uniform(0.5, 1.0, (2, 3)) * mask, np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    found, wanted = [], 0.0
    for k in (8, 3):
        taught = greatest(q.reshape(6, 7), k).reshape(2, 3, k + 1)
        fields = {"weights": weights, "aligned": counted, "teacher_sorted": taught}
        data = LossData(mask, np.zeros((2, 3), np.int64), fields, {}, np.arange(2))
        result = sorted_probabilities({"logits": z}, data, {})
        found.append(float(result.contributions["sorted_probabilities"].total))
    for i in np.ndindex(2, 3):
        own = sorted(np.exp(z[i]) / np.exp(z[i]).sum(), reverse=True)
        theirs = [*sorted(np.exp(q[i]) / np.exp(q[i]).sum(), reverse=True), 0.0, 0.0]
        wanted += weights[i] * counted[i] * mask[i] * sum(abs(a - b) for a, b in zip(own, theirs, strict=True))
    assert found[0] == pytest.approx(wanted, rel=1e-12) and found[1] <= found[0]
