"""A repetition penalty on logits, for sampling and for training on such samples.

The penalty divides the positive logit of every token that the sequence already has, and multiplies a negative one
(Keskar et al., 2019, arXiv:1909.05858, section 4.1, and by sign, as the field does since).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from finetooth_kernels.memory import placed
from numpy.typing import NDArray
from torch import Tensor


class SeenIds:
    """The distinct token ids of a sequence."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._known = {int(token) for token in tokens}
        self._ids = array("q", self._known)

    def add(self, token: int) -> None:
        """The next token."""
        if token not in self._known:
            self._known.add(token)
            self._ids.append(token)

    @property
    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(C,), in no order."""
        return np.array(self._ids, dtype=np.int64)


def penalise(logits: Tensor, penalty: float) -> Tensor:
    """The logits of tokens that have occurred, penalised."""
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def penalised(logits: Tensor, seen: Sequence[SeenIds], penalty: float) -> Tensor:
    """(B, V) with the penalty on the tokens of each row."""
    of = [row.ids for row in seen]
    places = np.repeat(np.arange(len(of)), [len(ids) for ids in of]), np.concatenate(of)
    index = placed(torch.from_numpy(np.stack(places)), logits.device).unbind()
    copy = logits.clone()
    copy[index] = penalise(logits[index], penalty)
    return copy


class Additions:
    """The bias on a completion's logits: a bias per token, minus penalties for tokens that have occurred.

    Args:
        bias: constants to add to logits, by token id.
        presence, frequency: penalty once per token, and per occurrence.
    """

    def __init__(self, bias: Iterable[tuple[int, float]], presence: float, frequency: float) -> None:
        self._once, self._each, self._there = presence, frequency, set[int]()
        self.of = dict(bias)

    def add(self, token: int) -> None:
        """The next token."""
        if self._once or self._each:
            paid = self._each + (0.0 if token in self._there else self._once)
            self.of[token] = self.of.get(token, 0.0) - paid
            self._there.add(token)


def with_additions(logits: Tensor, rows: Sequence[Additions | None]) -> Tensor:
    """(B, V) with each row's bias added."""
    places = [row for row, additions in enumerate(rows) if additions is not None for _ in additions.of]
    if not places:
        return logits
    ids = [token for additions in rows if additions is not None for token in additions.of]
    values = [value for additions in rows if additions is not None for value in additions.of.values()]
    index = placed(torch.tensor([places, ids]), logits.device).unbind()
    copy = logits.clone()
    copy[index] += placed(torch.tensor(values, dtype=logits.dtype), logits.device)
    return copy


@dataclass(frozen=True)
class Repetition:
    """A penalty on the logits of M states, for the tokens of each state's row up to its position.

    Attributes:
        penalty: its factor.
        tokens_st: (S, T) the rows' tokens.
        rows_m, columns_m: (M,) the place of each state.
        known_rows_m: `rows_m` on the host, which need not ask the device.
    """

    penalty: float
    tokens_st: Tensor
    rows_m: Tensor
    columns_m: Tensor
    known_rows_m: NDArray[np.int64]

    @classmethod
    def of(cls, penalty: float, tokens_st: Tensor, mask_st: NDArray[np.bool_]) -> Repetition:
        """The penalty for the states where the mask is true, in its order."""
        rows, columns = mask_st.nonzero()
        rows_m, columns_m = (placed(torch.from_numpy(of), tokens_st.device) for of in (rows, columns))
        return cls(penalty, tokens_st, rows_m, columns_m, rows)

    def apply(self, logits_mv: Tensor, start: int) -> Tensor:
        """Apply the penalty to the logits of consecutive states, from `start`."""
        chunk = slice(start, start + logits_mv.shape[0])
        known = self.known_rows_m[chunk]  # ascending
        lowest = int(known[0])
        read = self.tokens_st[lowest : int(known[-1]) + 1]
        columns = torch.arange(read.shape[1], device=read.device)
        first = torch.full((read.shape[0], logits_mv.shape[1]), read.shape[1], device=read.device)
        first.scatter_reduce_(1, read, columns.expand_as(read), "amin")
        seen = first[self.rows_m[chunk] - lowest] <= self.columns_m[chunk].unsqueeze(1)
        return torch.where(seen, penalise(logits_mv, self.penalty), logits_mv)
