"""What an adapter changes between steps: see the capability `changes` of adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from finetooth_hooks.protocols import Adapter
from torch import Tensor, nn

from finetooth_torch.updates.parameters import TrainedParameters

WORD = "changes"


class Changes:
    """Calls the adapter where it changes the model, and does nothing where it does not.

    Args:
        seed: of the engine.
    """

    def __init__(self, adapter: Adapter, model: nn.Module, parameters: TrainedParameters, seed: int) -> None:
        self._adapter, self._model, self._parameters, self._seed = adapter, model, parameters, seed
        self.any = WORD in adapter.capabilities
        self.begin(0)

    def begin(self, step: int) -> None:
        """The model is to be that of a number of updates."""
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
        """On the learning rate of the update that follows `step` updates."""
        return self._adapter.rate_factor(step) if self.any else 1.0

    def held(self) -> Mapping[str, Tensor]:
        """What belongs to a state in addition to what trains."""
        return dict(self._adapter.held(self._model)) if self.any else {}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take over what `held` gave; names and shapes were checked."""
        for name, tensor in self.held().items():
            tensor.copy_(tensors[name])
        self.begin(step)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, master: nn.Parameter, share: float) -> None:
    """Let the optimizer keep a share of what it knows of a parameter: in all tensors like it the same places, those
    with the largest numbers, each tensor measured by its largest one; the rest become 0. A first moment without its
    second one would make an update of any length. Of a state in another shape (factors of a matrix, numbers in 8 bits)
    nothing stays, since zero may mean something else there, nor of one that holds the weights as they were
    (`keeps_weights` of the optimizer)."""
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
