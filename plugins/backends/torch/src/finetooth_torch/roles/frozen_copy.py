"""A second set of the weights that train, swapped in where a role is the policy as it once was.

Everything else of the model is shared, so a copy costs what trains: an adapter's few weights, or all of them where all
of them train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from finetooth_torch.updates.parameters import TrainedParameters


class FrozenCopy:
    """The trained parameters as they are now.

    In bf16 and fp16 it keeps masters in fp32, as the policy does, so that moving it rounds nothing away.
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
                self._live[place] = parameter.data  # the stream decoder may have laid it side by side with others
                parameter.data = data

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """As `entered`, where the weights are gathered from parts that must stay where they are."""
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
        """The weights by their parameters' names."""
        return dict(zip(self._parameters.names, self._own, strict=True))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights by name; they and their shapes were checked."""
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
