"""A second set of the trained weights, for roles that are an earlier policy.

The rest of the model is shared, so a copy takes the memory of the trained weights: an adapter's, or all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from finetooth_torch.updates.parameters import TrainedParameters


class FrozenCopy:
    """A copy of the trained parameters.

    In bf16 and fp16 it keeps fp32 masters, as the policy does, so that updates of the copy lose no precision.
    """

    def __init__(self, parameters: TrainedParameters) -> None:
        self._parameters = parameters
        live = parameters.masters if parameters.sharded else parameters.live
        self._live = [parameter.detach().clone() for parameter in live]
        self._masters = [master.detach().clone() for master in parameters.masters] if parameters.split else None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the `with` block, the model computes with these weights; not for computing gradients."""
        if self._parameters.sharded:
            with self._exchanged():
                yield
            return
        policy = [parameter.data for parameter in self._parameters.live]
        try:
            for parameter, own in zip(self._parameters.live, self._live, strict=True):
                parameter.data = own
            yield
        finally:
            for place, (parameter, data) in enumerate(zip(self._parameters.live, policy, strict=True)):
                self._live[place] = parameter.data  # the stream decoder may have joined it with others
                parameter.data = data

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """As `entered`, for weights that are gathered from parts, which must stay."""
        here = [place for place, master in enumerate(self._parameters.masters) if not master.is_meta]
        masters = [self._parameters.masters[place].detach() for place in here]
        policy = [master.clone() for master in masters]
        try:
            torch._foreach_copy_(masters, [self._live[place] for place in here])
            self._parameters.publish()
            yield
        finally:
            torch._foreach_copy_(masters, policy)
            self._parameters.publish()

    @torch.no_grad()
    def move(self, mix: float) -> None:
        """TR-DPO (Gorbatovski et al., 2024, arXiv:2404.09656): mix * policy + (1 - mix) * copy; 1 is the hard
        update."""
        for own, policy in zip(self._own, self._parameters.masters, strict=True):
            own.lerp_(policy.detach(), mix)
        self._publish()

    def named(self) -> dict[str, Tensor]:
        """The weights by parameter name."""
        return dict(zip(self._parameters.names, self._own, strict=True))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights by name, whose names and shapes were checked."""
        for name, own in self.named().items():
            own.copy_(tensors[name])
        self._publish()

    @property
    def _own(self) -> list[Tensor]:
        return self._live if self._masters is None else self._masters

    def _publish(self) -> None:
        if self._masters is not None:
            for live, master in zip(self._live, self._masters, strict=True):
                live.copy_(master)
