"""Common steps before and after every ``linear_logprob``: select the counted rows, and put the results back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.contract import LinearLogprob, check_targets, result_dtype


@dataclass(frozen=True)
class CountedRows:
    """The M of N rows whose mask is true, packed, with their targets checked."""

    hidden_md: Tensor
    targets_mk: Tensor
    rows_m: Tensor | None
    """Which of the N rows they are; None: all of them."""
    shape: torch.Size
    """Shape of the caller's targets, (N,) or (N, K)."""
    expected_mk: Tensor | None = None
    """Theirs of what the caller expects as gradients, brought to at most 1."""

    @staticmethod
    def of(
        hidden_nd: Tensor, targets: Tensor, mask: Tensor | None, vocabulary: int, expected: Tensor | None = None
    ) -> CountedRows:
        """Pick them; rows that do not count are not looked at. Differentiable in `hidden_nd`.

        Raises:
            ValueError: for a target outside the vocabulary in a row that counts.
        """
        rows_m = None if mask is None else mask.nonzero().squeeze(1)
        targets_nk = targets if targets.dim() == 2 else targets.unsqueeze(1)
        targets_mk = targets_nk if rows_m is None else targets_nk.index_select(0, rows_m)
        check_targets(targets_mk, rows_m, vocabulary)
        hidden_md = hidden_nd if rows_m is None else hidden_nd.index_select(0, rows_m)
        if expected is not None:
            expected = expected.detach().to(result_dtype(hidden_nd.dtype)).reshape(targets_nk.shape)
            expected = _normalised(expected if rows_m is None else expected.index_select(0, rows_m))
        return CountedRows(hidden_md, targets_mk, rows_m, targets.shape, expected)

    def result(self, logprobs_mk: Tensor, entropy_m: Tensor | None, top1_m: Tensor | None) -> LinearLogprob:
        """Put the results back among the N rows."""
        logprobs_nk = self._spread(logprobs_mk, 0)
        return LinearLogprob(
            logprobs_nk if len(self.shape) == 2 else logprobs_nk.squeeze(1),
            None if entropy_m is None else self._spread(entropy_m, 0),
            None if top1_m is None else self._spread(top1_m, -1),
        )

    def _spread(self, compact: Tensor, fill: int) -> Tensor:
        if self.rows_m is None:
            return compact
        whole = compact.new_full((self.shape[0], *compact.shape[1:]), fill)
        return whole.index_copy(0, self.rows_m, compact)


def _normalised(expected_mk: Tensor) -> Tensor:
    """Only proportions matter, and half precision holds numbers about 1 best."""
    if expected_mk.numel() == 0:
        return expected_mk
    largest = expected_mk.abs().amax()
    return expected_mk / torch.where(largest > 0, largest, 1.0)


def as_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs as `torch.nn.functional.linear` would cast them under the autocast in force, if any."""
    kind = hidden.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    hidden, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (hidden, weight))
    return hidden, weight, bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which matrix products run in the dtypes they are given."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
