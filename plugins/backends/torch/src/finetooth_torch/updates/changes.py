"""Calls adapters that change the model between steps: see the capability `changes` of adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from finetooth_hooks.protocols import Adapter
from torch import Tensor, nn

from finetooth_torch.updates.parameters import TrainedParameters

WORD = "changes"


class Changes:
    """Calls the adapter if it changes the model; otherwise does nothing.

    Args:
        seed: of the engine.
    """

    def __init__(self, adapter: Adapter, model: nn.Module, parameters: TrainedParameters, seed: int) -> None:
        self._adapter, self._model, self._parameters, self._seed = adapter, model, parameters, seed
        self.any = WORD in adapter.capabilities
        self.begin(0)

    def begin(self, step: int) -> None:
        """Change the model to the state after a number of updates."""
        if self.any:
            self._adapter.at_step(self._model, step, self._seed)

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Update number `step` is done."""
        if not self.any:
            return
        with self._parameters.as_given(take=True):
            forgotten = self._adapter.after_step(self._model, step, self._seed)
        masters = dict(self._parameters.named())
        for name, share in forgotten.items():
            forget(optimizer, masters[name], share)

    def factor(self, step: int) -> float:
        """Factor on the learning rate of the update after `step` updates."""
        return self._adapter.rate_factor(step) if self.any else 1.0

    def held(self) -> Mapping[str, Tensor]:
        """The adapter's part of a state, besides trained weights."""
        return dict(self._adapter.held(self._model)) if self.any else {}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Load the result of `held`, whose names and shapes were checked."""
        for name, tensor in self.held().items():
            tensor.copy_(tensors[name])
        self.begin(step)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, master: nn.Parameter, share: float) -> None:
    """Keep a share of a parameter's optimizer state: the same places in all tensors of the parameter's shape, those
    with the largest numbers relative to each tensor's largest; the rest become 0. A first moment without its second
    would give an update of any size. State of another shape (factors of a matrix, 8-bit numbers) is dropped, since zero
    may mean something else there; so is a copy of the weights (`keeps_weights` of the optimizer)."""
    if master not in optimizer.state:
        return
    state = optimizer.state[master]
    tensors = [state[key] for key in sorted(state) if isinstance(state[key], Tensor) and state[key].dim() > 0]
    plain = all(value.shape == master.shape and value.is_floating_point() for value in tensors)
    count = round(share * master.numel())
    if not count or not plain or getattr(optimizer, "keeps_weights", False):
        del optimizer.state[master]
        return
    sizes = torch.zeros(master.numel(), device=master.device)
    for value in tensors:
        size = value.to(sizes).reshape(-1).abs()
        sizes += size / size.max().clamp_min(torch.finfo(size.dtype).tiny)
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[sizes.topk(count).indices] = True
    for value in tensors:
        value.masked_fill_(~mask.view_as(value).to(value.device), 0.0)
