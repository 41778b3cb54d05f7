"""The parameters that train where each rank holds a part of every tensor.

The model's parameters are gathered in the precision that it computes in while a layer needs them. Masters are this
rank's parts of them in fp32, as plain tensors in the memory of DTensors, so that an optimizer that treats every number
by itself needs to know nothing of ranks. A backward pass leaves sums over all ranks with the strategy; they go to the
masters after each call. What is saved is whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from finetooth_hooks.protocols import DividedModel, EngineRequest, ShardedModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.precision import result_dtype
from finetooth_torch.updates.parameters import TrainedParameters, trained
from finetooth_torch.updates.scaler import LossScaler

if TYPE_CHECKING:
    from finetooth_torch.network import Network


def divided(
    model: nn.Module, base: nn.Module, request: EngineRequest, dtype: torch.dtype, original: Collection[int],
    scaler: LossScaler, compute: Compute,
) -> ShardedParameters:  # fmt: skip
    """Divide a model among the ranks of a request.

    Args:
        model, base: with its adapter and without.
        dtype: what the model computes in.
        original: identities (`id`) of the parameters that the base had.

    Raises:
        PlanError: nothing trains.
    """
    sharding, precision = request.place.sharding, request.plan.train.precision
    assert sharding is not None and sharding.shard is not None and precision is not None
    live = trained(model)
    dtypes = [dtype if id(parameter) in original else parameter.dtype for _, parameter in live]
    for _, parameter in live:
        parameter.data = parameter.data.to(result_dtype(dtype))
    shapes = {name: parameter.shape for name, parameter in live}
    layers = list(base.get_submodule(request.base.facts.layer_path).children())
    sharded = sharding.shard(model, layers, precision)
    if not sharding.divided:
        sharded = DividedByTensor(model, sharded)
    return ShardedParameters(model, shapes, dtypes, scaler, compute, sharded=cast(DividedModel, sharded))


class DividedByTensor:
    """Implements `finetooth_hooks.protocols.DividedModel` for a model whose parameters are DTensors."""

    def __init__(self, model: nn.Module, sharded: ShardedModel) -> None:
        self._model, self._parts = model, dict[str, Any]()
        self.computing, self.gathered = sharded.computing, sharded.gathered

    def parts(self, names: Collection[str]) -> Mapping[str, Any]:
        parameters = dict(self._model.named_parameters())
        self._parts = {name: parameters[name] for name in names}
        return self._parts

    def gradients(self) -> Mapping[str, Any]:
        gradients = {name: part.grad.to_local() for name, part in self._parts.items() if part.grad is not None}
        for part in self._parts.values():
            part.grad = None
        return gradients

    def publish(self) -> None:
        """The model's own parameters are the parts."""


class ShardedParameters(TrainedParameters):
    """See the module and `TrainedParameters`.

    Args:
        model: the divided model; `shapes` are those of its parameters that train, by their names.
        given: the precisions in which they are exported.
        sharded: gathers them.
    """

    sharded = True

    def __init__(
        self,
        model: nn.Module,
        shapes: Mapping[str, torch.Size],
        given: Collection[torch.dtype],
        scaler: LossScaler,
        compute: Compute = TORCH,
        *,
        sharded: DividedModel,
    ) -> None:
        self._accumulate, self._scaler, self._sharded = (
            compute.accumulate, scaler, sharded
        )  # fmt: skip
        self.names, self._given_dtypes, self.split = tuple(shapes), list(given), False
        self._shapes = shapes
        parameters: dict[str, Any] = dict(model.named_parameters())
        self.live = [parameters[name] for name in self.names]
        self._parts: Mapping[str, DTensor] = sharded.parts(self.names)
        self.masters = [nn.Parameter(part.to_local().detach()) for part in self._parts.values()]
        name_of = {id(parameter): name for name, parameter in zip(self.names, self.live, strict=True)}
        self._owners = [  # where the model holds them; a tied one in several places
            (module, attribute, name_of[id(parameter)])
            for module in model.modules()
            for attribute, parameter in module._parameters.items()
            if id(parameter) in name_of
        ]

    def numel(self) -> int:
        return sum(part.numel() for part in self._parts.values())

    def collect(self) -> None:
        gradients = self._sharded.gradients()
        for name, master in self.named():
            part = gradients.get(name)
            if part is not None:
                master.grad = self._accumulate(master.grad, part, torch.promote_types(part.dtype, torch.float32))

    def zero_grad(self) -> None:
        super().zero_grad()
        self._sharded.gradients()

    @torch.no_grad()
    def publish(self) -> None:
        self._sharded.publish()

    @torch.no_grad()
    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        full = {}
        for name, tensor in tensors.items():
            of = self._parts[name]
            part = DTensor.from_local(
                tensor.detach().to(of.device), of.device_mesh, of.placements, shape=of.shape, stride=of.stride()
            )
            full[name] = part.full_tensor().view(self._shapes[name])
        return full

    @torch.no_grad()
    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A tensor without the shape of the whole parameter stays as it is, for a later check to refuse."""
        return {
            name: self._own(self._parts[name], tensor)
            if name in self._parts and tensor.shape == self._shapes[name]
            else tensor
            for name, tensor in tensors.items()
        }

    @staticmethod
    def _own(of: DTensor, whole: Tensor) -> Tensor:
        whole = whole.to(of.device).reshape(of.shape)
        return distribute_tensor(whole, of.device_mesh, of.placements, src_data_rank=None).to_local().clone()

    def serve(self, network: Network) -> None:
        network.compute_by(self._sharded)

    def gathered(self) -> AbstractContextManager[None]:
        return self._sharded.gathered()

    def norm(self) -> float:
        """Global L2 norm over the parts of all ranks; what several ranks hold counts once."""
        squares: dict[Any, Tensor] = {}  # by how it is divided; of everything, since all ranks add the same sums
        for part, master in zip(self._parts.values(), self.masters, strict=True):
            divided_by = tuple(Replicate() if place.is_replicate() else Partial() for place in part.placements)
            square = squares.setdefault((part.device_mesh, divided_by), torch.zeros((), device=master.device))
            if master.grad is not None:
                square += torch.linalg.vector_norm(master.grad, dtype=torch.float32) ** 2
        totals = [DTensor.from_local(square, *key).full_tensor() for key, square in squares.items()]
        return math.sqrt(sum(map(float, totals)))

    @contextmanager
    def as_given(self, *, take: bool = False) -> Iterator[None]:
        """Inside, the model is whole, what trains as its masters are and the rest as it is computed with."""
        with self._sharded.gathered():
            masters = self.whole(dict(self.named()))
            made = {
                name: nn.Parameter(masters[name].to(dtype))
                for name, dtype in zip(self.names, self._given_dtypes, strict=True)
            }
            before = [module._parameters[attribute] for module, attribute, _ in self._owners]
            for module, attribute, name in self._owners:
                module._parameters[attribute] = made[name]
            try:
                yield
                if take:
                    taken = {name: cast(Tensor, module._parameters[at]).detach() for module, at, name in self._owners}
                    self.restore(self.own(taken))
            finally:
                for (module, attribute, _), parameter in zip(self._owners, before, strict=True):
                    module._parameters[attribute] = parameter
