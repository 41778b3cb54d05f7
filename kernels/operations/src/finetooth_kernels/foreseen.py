"""Gradients formed in the forward pass, before it is known what comes in from above: all but a factor.

Row i's log-probability has the gradient s_i = d logprob_i / d hidden_i, which only has to be scaled by what comes in.
The gradient of the weight is a sum over rows, sum_i d_i (d z_i)^T hidden_i, so it needs to know the incoming d_i up to
a common factor. With cross entropy they are: minus the weights of the targets, over a number that is the same for all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finetooth_kernels.compiled import NOTHING, Compiled
from finetooth_kernels.contract import Gradients
from finetooth_kernels.sums import scaled

__all__ = ["Foreseen"]

_ROUNDINGS = 8.0
"""How many of them may lie between what was expected and what came."""


class Foreseen(NamedTuple):
    """What a forward pass made; all None where it made nothing.

    Attributes:
        slopes_md: d logprob / d hidden of each row; None: hidden states take no gradient.
        expected_m1: what the incoming gradients will be in proportion to; None: the weight does not train.
        d_weight_vd: the gradient of the weight if they are just that, in its own precision or a wider one.
    """

    slopes_md: Tensor | None = None
    expected_m1: Tensor | None = None
    d_weight_vd: Tensor | None = None

    def gradients(self, d_logprobs_m1: Tensor, dtype: torch.dtype, compiled: Compiled = NOTHING) -> Gradients | None:
        """Scaled by the gradients that came; None where those are not what was expected.

        Args:
            dtype: of the results.
        """
        if self.slopes_md is None and self.d_weight_vd is None:
            return None
        d_hidden = d_weight = None
        if self.expected_m1 is not None and self.d_weight_vd is not None:
            factor = _common_factor(d_logprobs_m1, self.expected_m1)
            if factor is None:
                return None
            # not in place: the graph may be gone through again
            d_weight = scaled(self.d_weight_vd, dtype, factor, compiled)
        if self.slopes_md is not None:
            d_hidden = (self.slopes_md * d_logprobs_m1).to(dtype)
        return d_hidden, d_weight, None


def _common_factor(came_m1: Tensor, expected_m1: Tensor) -> Tensor | None:
    """What `expected_m1` has to be multiplied with to give `came_m1`, but for rounding; None: no number does."""
    if expected_m1.numel() == 0:
        return None
    at = expected_m1.abs().argmax()
    largest, came = expected_m1.flatten()[at], came_m1.flatten()[at]
    factor = torch.where(largest == 0, 0, came / largest).to(expected_m1.dtype)  # if none is expected, none may come
    foreseen_m1 = expected_m1 * factor
    limit = foreseen_m1.abs().mul_(_ROUNDINGS * torch.finfo(came_m1.dtype).eps)
    fits = (came_m1 - foreseen_m1).abs_() <= limit  # false where anything is no number
    return factor if bool(fits.all()) else None
