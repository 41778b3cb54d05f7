"""The trained parameters if each rank holds a part of every tensor.

The model's parameters are gathered in its precision while a layer needs them. Masters are this rank's parts in fp32, as
plain tensors in the memory of DTensors, so an element-wise optimizer need not know of ranks. Masters may be in host
memory, where the optimizer then updates them; ranks exchange on their devices. The strategy sums gradients over ranks
in a backward pass; they move to the masters after each call. Saved tensors are whole, in the host memory of one rank: a
device has room for one of them, and a host may have several ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from finetooth_hooks.protocols import DividedModel, EngineRequest, ShardedModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.updates.parameters import R, TrainedParameters, trained
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
        dtype: in which the model computes.
        original: identities (`id`) of the base's parameters.

    Raises:
        PlanError: nothing trains.
    """
    sharding, precision = request.place.sharding, request.plan.train.precision
    assert sharding is not None and sharding.shard is not None and precision is not None
    shapes, dtypes = described(model, dtype, original)
    layers = list(base.get_submodule(request.base.facts.layer_path).children())
    sharded = sharding.shard(model, layers, precision)
    if not sharding.divided:
        sharded = DividedByTensor(model, sharded)
    return ShardedParameters(
        model, shapes, dtypes, scaler, compute, sharded=cast(DividedModel, sharded), frozen=request.trains.base_frozen,
        whole=sharding.whole if sharding.divided else whole_of, sampled_by_layer=sharding.sampled_by_layer,
    )  # fmt: skip


def described(
    model: nn.Module, dtype: torch.dtype, original: Collection[int]
) -> tuple[dict[str, torch.Size], list[torch.dtype]]:
    """Shapes and export precisions of the trained parameters, by name; not the parameters, since a layer's whole ones
    are freed as soon as it is divided. Arguments as for `divided`.

    Raises:
        PlanError: nothing trains.
    """
    live = trained(model)
    dtypes = [dtype if id(parameter) in original else parameter.dtype for _, parameter in live]
    return {name: parameter.shape for name, parameter in live}, dtypes


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
        given: their export precisions.
        sharded: gathers them.
        frozen: the base does not train, and no adapter exports it.
        whole: returns frozen parameters in host memory; None: the model is gathered for that.
        sampled_by_layer: sampling gathers a layer when it computes.
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
        frozen: bool = False,
        whole: Callable[[Any], Tensor] | None = None,
        sampled_by_layer: bool = False,
    ) -> None:
        self._accumulate, self._scaler, self._sharded = (
            compute.accumulate, scaler, sharded
        )  # fmt: skip
        self.names, self._given_dtypes, self.split = tuple(shapes), list(given), False
        self._shapes = shapes
        parameters: dict[str, Any] = dict(model.named_parameters())
        self.live = [parameters[name] for name in self.names]
        self._parts: Mapping[str, DTensor] = sharded.parts(
            [name for name in self.names if not parameters[name].is_meta]
        )
        self.masters = [
            nn.Parameter(self._parts[name].to_local().detach() if name in self._parts else _absent(parameters[name]))
            for name in self.names
        ]
        name_of = {id(parameter): name for name, parameter in zip(self.names, self.live, strict=True)}
        places = [  # where the model holds them; a tied one in several places
            (module, attribute, parameter)
            for module in model.modules()
            for attribute, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._owners = [(module, at, name_of[id(of)]) for module, at, of in places if id(of) in name_of]
        self._places, self._frozen = [(module, at) for module, at, _ in places], frozen
        self._whole, self._sampled_by_layer = whole, sampled_by_layer
        # the first rank that divides some tensor, from which `own` gets the numbers
        self.keeps = any(not any(part.device_mesh.get_coordinate() or ()) for part in self._parts.values())
        self.exports = self.keeps or frozen

    def numel(self) -> int:
        return sum(shape.numel() for shape in self._shapes.values())

    def collect(self) -> None:
        gradients = self._summed()
        for name, master in self.named():
            part = gradients.get(name)
            if part is not None:
                part = self._accumulate(None, part, torch.promote_types(part.dtype, torch.float32))
                # the sum is in the new part: a failing call restores the old one
                master.grad = part if master.grad is None else self._accumulate(part, master.grad, part.dtype)

    def _earlier(self, on_host: bool) -> list[Callable[[], Tensor] | None]:
        """No copies: `collect` changes none of them."""
        return [None if master.grad is None else master.grad.detach for master in self.masters]

    def _summed(self) -> Mapping[str, Tensor]:
        """This rank's parts of the gradients of backward passes."""
        return self._sharded.gradients()

    def zero_grad(self) -> None:
        super().zero_grad()
        self._sharded.gradients()

    @torch.no_grad()
    def publish(self) -> None:
        self._sharded.publish()

    @torch.no_grad()
    def whole(self, tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> Mapping[str, Tensor]:
        full, keeps = {}, everywhere or self.keeps
        for name, tensor in tensors.items():
            full[name] = _kept(whole_of(self._parts[name], tensor.detach()).view(self._shapes[name]), keeps)
        return full

    @torch.no_grad()
    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A tensor of another shape than the whole parameter does not change, and a later check refuses it. All ranks
        process them in order of their names."""
        return {
            name: self._own(self._parts[name], tensor)
            if name in self._parts and tensor.shape == self._shapes[name]
            else tensor
            for name, tensor in sorted(tensors.items())
        }

    @staticmethod
    def _own(of: DTensor, whole: Tensor) -> Tensor:
        """Get it from the rank that keeps it; the others pass only its shape."""
        device = of.device_mesh.device_type
        whole = torch.empty_like(whole, device=device) if whole.is_meta else whole.to(device)
        placed = distribute_tensor(whole.reshape(of.shape), of.device_mesh, of.placements, src_data_rank=0)
        return placed.to_local().to(of.device, copy=True)

    def built(self, build: Callable[[], Network]) -> Network:
        made: Network = self._sharded.computing(build)()  # layer by layer: no rank has room for all
        return made

    def serve(self, network: Network) -> None:
        network.compute_by(self._sharded)

    def sampling(self, sample: Callable[..., R]) -> Callable[..., R]:
        return self._sharded.computing(sample) if self._sampled_by_layer else super().sampling(sample)

    def gathered(self) -> AbstractContextManager[None]:
        return self._sharded.gathered()

    def norm(self) -> float:
        """Global L2 norm over the parts of all ranks; replicated parts count once."""
        return math.sqrt(self._squares(self._parts))

    def _squares(self, names: Collection[str]) -> float:
        """Sum of the squares of the gradients of some parameters, over the ranks that divide them."""
        squares: dict[Any, Tensor] = {}  # for all kinds of division, since all ranks add the same sums
        for name, master in self.named():
            if name not in names:
                continue
            part = self._parts[name]
            divided_by = tuple(Replicate() if place.is_replicate() else Partial() for place in part.placements)
            square = squares.setdefault((part.device_mesh, divided_by), torch.zeros((), device=master.device))
            if master.grad is not None:
                square += torch.linalg.vector_norm(master.grad, dtype=torch.float32) ** 2
        totals = [
            DTensor.from_local(square.to(mesh.device_type), mesh, by).full_tensor()
            for (mesh, by), square in squares.items()
        ]
        return sum(map(float, totals))

    @contextmanager
    def as_given(self, *, take: bool = False) -> Iterator[None]:
        """Inside the `with` block, the model is whole, with trained parameters as in the masters and the rest in the
        model's precision. Without `take` only exporting ranks have it, in host memory, tensor by tensor; a frozen base,
        which no adapter exports, stays in parts."""
        held = {(module, at): cast(Tensor, module._parameters[at]) for module, at in self._places}
        in_turn = None if take else self._whole
        with self._sharded.gathered() if in_turn is None else nullcontext():
            masters = self.whole(dict(self.named()), everywhere=take or self.exports)
            device = next(iter(self._parts.values())).device_mesh.device_type
            trained = {
                name: nn.Parameter(masters[name].to(device if take else None, dtype))
                for name, dtype in zip(self.names, self._given_dtypes, strict=True)
            }
            made = {(module, at): trained[name] for module, at, name in self._owners}
            if in_turn is not None and not self._frozen:
                others = {id(of): of for place, of in held.items() if place not in made}
                whole = {
                    key: nn.Parameter(_kept(in_turn(of), self.keeps), requires_grad=False) for key, of in others.items()
                }
                made |= {place: whole[id(of)] for place, of in held.items() if id(of) in whole}
            before = {(module, at): module._parameters[at] for module, at in made}
            for (module, at), parameter in made.items():
                module._parameters[at] = parameter
            try:
                yield
                if take:
                    taken = {name: cast(Tensor, module._parameters[at]).detach() for module, at, name in self._owners}
                    self.restore(self.own(taken))
            finally:
                for (module, at), own in before.items():
                    module._parameters[at] = own


def _absent(of: Tensor) -> Tensor:
    """A master for a parameter of other ranks."""
    return of.detach().to(torch.promote_types(of.dtype, torch.float32))


@torch.no_grad()
def whole_of(of: Any, own: Tensor | None = None) -> Tensor:
    """The whole of a tensor that is divided like `of`, in host memory.

    Args:
        own: this rank's part; None: that of `of` itself.
    """
    mesh, part = of.device_mesh, of.to_local() if own is None else own
    part = DTensor.from_local(part.to(mesh.device_type), mesh, of.placements, shape=of.shape, stride=of.stride())
    return part.full_tensor().cpu()


def _kept(whole: Tensor, keeps: bool) -> Tensor:
    """A tensor, or only its shape."""
    return whole if keeps else torch.empty_like(whole, device="meta")
