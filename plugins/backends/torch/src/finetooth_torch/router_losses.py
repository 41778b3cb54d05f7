"""Losses of a mixture's routers over the real positions of a step (decision 0047), without padding and without
positions after a row's last trained target, which are never computed.

Load balancing is that of Switch Transformer (arXiv:2101.03961, equations 4 to 6) in transformers' form: all layers
count as one, and a position counts once for each of its experts. With E experts, N positions times layers, n_e of them
routed to expert e, and p_e the sum of the probabilities of e,

    balance = E sum_e (n_e / N) (p_e / N)

n_e has no gradient. With n_e of the whole step, the loss is a sum over micro-batches and ranks. The z-loss (ST-MoE,
arXiv:2202.08906, equation 5) is the mean of the squared logarithm of the softmax's sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_hooks import Contribution, LossResult
from finetooth_hooks.protocols import ModelFacts
from torch import Tensor, nn

from finetooth_torch.draws import Draws
from finetooth_torch.planning.routers import RouterCoefficients
from finetooth_torch.precision import result_dtype


class RouterLosses:
    """Computes losses from router outputs.

    Args:
        layers: of the decoder, in order.
        draws: knows which computed positions are real.

    Attributes:
        step: the routers' choices over the whole step, from `counts`; None: the last pass is the whole step.
    """

    step: Tensor | None = None

    def __init__(
        self, layers: Sequence[nn.Module], facts: ModelFacts, coefficients: RouterCoefficients, draws: Draws
    ) -> None:
        self._coefficients, self._draws = coefficients, draws
        self._reads = False
        self._read: list[Tensor] = []
        for layer, layer_facts in zip(layers, facts.per_layer, strict=True):
            if layer_facts.experts is not None:
                self._active = layer_facts.experts.active
                layer.get_submodule(layer_facts.experts.router).register_forward_hook(self._keep)

    def _keep(self, router: nn.Module, args: Any, output: Any) -> None:
        del router, args
        if self._reads:  # no computation here: a recomputed layer would not repeat it
            self._read.append(output[0] if isinstance(output, tuple) else output)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the `with` block, record each layer's router output; after it, hold (N, E) logits of the real
        positions. Backward passes with recomputation run outside."""
        self._read, self._reads = [], True
        try:
            yield
        finally:
            self._reads = False
        real = self._draws.real()
        self._read = [logits.flatten(0, -2)[real].to(result_dtype(logits.dtype)) for logits in self._read]

    def counts(self) -> Tensor:
        """(E + 1,) int64 of the last pass: positions routed to each expert, over all layers, and positions times
        layers. The host does not wait for the device."""
        chosen = torch.cat([logits.detach().topk(self._active, -1).indices.flatten() for logits in self._read])
        sent = chosen.new_zeros(self._read[0].shape[-1]).index_add_(0, chosen, torch.ones_like(chosen))
        return nn.functional.pad(sent, (0, 1), value=sum(map(len, self._read)))

    def losses(self) -> LossResult:
        """The last pass's part of the step's losses."""
        step = self.counts() if self.step is None else self.step
        read, self._read = self._read, []
        counted = step.to(read[0].dtype)
        sent, rows = counted[:-1], counted[-1]
        parts = {}
        if weight := self._coefficients.balance:
            chances_e = torch.stack([logits.softmax(-1).sum(0) for logits in read]).sum(0)
            balance = len(sent) * (sent / rows * chances_e).sum() / rows
            parts["router_aux_loss"] = Contribution(balance, "none", weight)
        if weight := self._coefficients.z:
            squares = torch.stack([logits.logsumexp(-1).square().sum() for logits in read]).sum()
            parts["router_z_loss"] = Contribution(squares / rows, "none", weight)
        return LossResult(parts)
