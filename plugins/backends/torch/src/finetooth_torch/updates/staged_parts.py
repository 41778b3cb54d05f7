"""The trained parameters if each rank has some of the decoder's layers, and a part of every tensor in them.

Ranks of a stage divide its layers, and the parameters outside layers, as in
`finetooth_torch.updates.sharded_parameters`. Each part outside layers is at one rank of each stage, and its gradients
are summed over those. Saved tensors are gathered over parts first, then over stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import EngineRequest
from torch import Tensor, nn

from finetooth_torch.compute import Compute
from finetooth_torch.precision import result_dtype
from finetooth_torch.staged.body import numbers_of
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torch.updates.sharded_parameters import DividedByTensor, ShardedParameters, described, whole_of
from finetooth_torch.updates.staged_parameters import StagedParameters

if TYPE_CHECKING:
    from finetooth_torch.network import Network


class StagedParts(StagedParameters, ShardedParameters):
    """See the module.

    Args:
        model, base: with its adapter and without.
        dtype: in which the model computes.
        original: identities (`id`) of the base's parameters.
        stand_ins: context in which layers of other ranks have made-up numbers.

    Raises:
        PlanError: nothing trains, at some rank.
    """

    def __init__(
        self, model: nn.Module, base: nn.Module, request: EngineRequest, dtype: torch.dtype, original: Collection[int],
        scaler: LossScaler, compute: Compute, stand_ins: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        sharding, precision = request.place.sharding, request.plan.train.precision
        assert sharding is not None and sharding.shard is not None and sharding.stages is not None and precision
        self._model, self._stages, self._stand_ins = model, sharding.stages(), stand_ins
        self._owner, self._elsewhere = {}, []
        shapes, dtypes = described(model, dtype, original)
        layers = list(base.get_submodule(request.base.facts.layer_path).children())
        self._give_up(layers, None if result_dtype(dtype) == dtype else dtype)  # precision of gathered layers
        if all(parameter.is_meta for parameter in model.parameters() if parameter.requires_grad):
            raise PlanError(
                "scale.strategy: nothing trains in the layers of some ranks, which divide these",
                action="leave shard, tensor and context out, or choose an adapter that trains something in every layer",
            )
        own = numbers_of(self._stages.rank, self._stages.world, len(layers))
        sharded = sharding.shard(model, [layers[number] for number in own], precision)
        ShardedParameters.__init__(
            self, model, shapes, dtypes, scaler, compute, sharded=DividedByTensor(model, sharded),
            frozen=request.trains.base_frozen, whole=self._of_base, sampled_by_layer=sharding.sampled_by_layer,
        )  # fmt: skip
        self._name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        self._device = next(iter(self._parts.values())).device
        self._outside = [name for name in self._parts if name not in self._owner]

    def built(self, build: Callable[[], Network]) -> Network:
        with self._stand_ins():
            return super().built(build)

    def serve(self, network: Network) -> None:
        with self._stand_ins():
            self._sharded.computing(lambda: network.divide_layers(self._stages))()
        self._check_rows(network)
        self._network = network
        network.compute_by(self._sharded)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        with self._stand_ins(), self._sharded.gathered():
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._sharded.gathered(), super().alone():
            yield

    # --- gradients ----------------------------------------------------------------------------------------------------

    def _summed(self) -> Mapping[str, Tensor]:
        """Sum gradients outside layers over the stages too."""
        gradients = dict(super()._summed())
        given = [
            gradients[name] if name in gradients else torch.zeros_like(self._parts[name].to_local())
            for name in self._outside
        ]
        sums = self._stages.sum(given) if given else []
        return {**gradients, **dict(zip(self._outside, sums, strict=True))}

    def norm(self) -> float:
        """Norm over the layers of all ranks; replicated parameters count once."""
        own = self._squares([name for name in self._parts if name in self._owner])
        (of_layers,) = self._stages.sum([torch.tensor([own], dtype=torch.float64, device=self._device)])
        return math.sqrt(float(of_layers) + self._squares(self._outside))

    # --- whole --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def whole(self, tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> Mapping[str, Tensor]:
        here = {name: tensor for name, tensor in tensors.items() if name in self._parts}
        full = dict(ShardedParameters.whole(self, here, everywhere=everywhere))
        of_layers = {name: tensor for name, tensor in full.items() if name in self._owner}
        for name, tensor in self._gathered(of_layers, keeps=everywhere or self.keeps).items():
            full[name] = tensor if tensor.is_meta else tensor.cpu()
        return {name: full[name] for name in self.names if name in full}

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """With this rank's parts, and empty tensors for other stages."""
        saved = optimizer.state_dict()
        plain = {
            index: {key: ... if torch.is_tensor(of) and of.dim() else of for key, of in entries.items()}
            for index, entries in saved["state"].items()
        }
        merged = {index: of for part in self._stages.gather(plain) for index, of in part.items()}
        absent = torch.empty(1, device="meta")
        state = {
            index: saved["state"].get(index) or {key: absent if of is ... else of for key, of in entries.items()}
            for index, entries in sorted(merged.items())
        }
        return {**saved, "state": state}

    def _of_base(self, of: Any) -> Tensor:
        """Whole frozen parameters, in host memory."""
        name = self._name_of[id(of)]
        given = torch.zeros(of.shape, dtype=of.dtype) if of.is_meta else whole_of(of)
        return self._stages.sum([given.to(self._device)])[0].cpu() if name in self._owner else given

    @contextmanager
    def as_given(self, *, take: bool = False) -> Iterator[None]:
        """See `ShardedParameters`; layers of other ranks have their trained parameters, and with `take` made-up numbers
        otherwise."""
        with self._stand_ins() if take else nullcontext(), ShardedParameters.as_given(self, take=take):
            yield
