"""The trained parameters if each rank has some of the decoder's layers.

Every rank knows all names, in the same order. Parameters of other ranks' layers are on the device `meta`: without
memory, gradients and optimizer state. Parameters outside layers (embeddings, head, norms) are at every rank, with
gradients summed over ranks. Saved tensors are whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Stages
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.staged.body import numbers_of
from finetooth_torch.updates.parameters import TrainedParameters
from finetooth_torch.updates.scaler import LossScaler

if TYPE_CHECKING:
    from finetooth_torch.network import Network


class StagedParameters(TrainedParameters):
    """See the module and `TrainedParameters`.

    Args:
        stages: the line to the ranks that have the other layers.
        frozen: the base does not train, so it is never saved.
        stand_ins: context in which unread layers have made-up numbers; see `standing_in`.
    """

    staged = True

    def __init__(
        self, model: nn.Module, base: Collection[int], dtype: torch.dtype, scaler: LossScaler,
        compute: Compute = TORCH, *, kept: Collection[int] = (), words: Collection[str] = (), stages: Stages,
        frozen: bool, stand_ins: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        super().__init__(model, base, dtype, scaler, compute, kept=kept, words=words)
        self._model, self._stages, self._frozen = model, stages, frozen
        self._stand_ins = stand_ins
        self._owner: dict[str, int] = {}  # the rank of each layer parameter, by name
        self._elsewhere: list[tuple[nn.Module, str, str]] = []  # modules, attributes and names of others
        self._device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
        self._network: Network | None = None

    @property
    def device(self) -> torch.device:
        return self._device

    def gathered(self) -> AbstractContextManager[None]:
        """Inside the `with` block, layers of other ranks have made-up numbers."""
        return self._stand_ins()

    def serve(self, network: Network) -> None:
        with self.gathered():
            layers = network.divide_layers(self._stages)
        self._check_rows(network)
        replaced = self._give_up(layers.layers)
        self._network = network
        split = self.masters is not self.live
        masters = [
            _on_meta(master) if id(live) in replaced else master
            for live, master in zip(self.live, self.masters, strict=True)
        ]
        self.live = [replaced.get(id(live), live) for live in self.live]
        self.masters = masters if split else self.live

    def _give_up(
        self, layers: Sequence[nn.Module], dtype: torch.dtype | None = None
    ) -> Mapping[int, nn.Parameter]:  # fmt: skip
        """Free the layers of other ranks; return the placeholders of their parameters, by the parameters' identity.
        Placeholders have `dtype`, by default the parameters'."""
        name_of = {id(parameter): name for name, parameter in self._model.named_parameters()}
        replaced: dict[int, nn.Parameter] = {}
        for rank in range(self._stages.world):
            for number in numbers_of(rank, self._stages.world, len(layers)):
                for module in layers[number].modules():
                    for attribute, parameter in module._parameters.items():
                        if parameter is None:
                            continue
                        name = name_of[id(parameter)]
                        self._owner[name] = rank
                        if rank != self._stages.rank:
                            replaced[id(parameter)] = _on_meta(parameter, dtype)
                            self._elsewhere.append((module, attribute, name))
                            module._parameters[attribute] = replaced[id(parameter)]
        return replaced

    def _check_rows(self, network: Network) -> None:
        """
        Raises:
            PlanError: trials of the ranks' layers allow different row layouts.
        """
        rows = network.rows
        ways = self._stages.gather([rows.filling, rows.masks, bool(rows.trees), bool(rows.obstacle)])
        if any(way != ways[0] for way in ways):
            raise PlanError(
                "scale.strategy: the layers of some ranks cannot lay out rows as those of others",
                action="set backend.packing: false",
            )

    # --- gradients ----------------------------------------------------------------------------------------------------

    def joined(self, gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        common = [place for place, name in enumerate(self.names) if name not in self._owner]
        has = torch.tensor([float(place in gradients) for place in common], device=self._device)
        present = self._stages.sum([has])[0].tolist() if common else []
        places = [place for place, ranks in zip(common, present, strict=True) if ranks]
        own = [
            gradients[place] if place in gradients else torch.zeros_like(self.masters[place], dtype=torch.float32)
            for place in places
        ]
        return {**gradients, **dict(zip(places, self._stages.sum(own) if own else [], strict=True))}

    def norm_of(self, gradients: Mapping[int, Tensor]) -> float:
        """Norm over the layers of all ranks; replicated parameters count once."""
        squares = torch.zeros(2, dtype=torch.float64, device=self._device)
        for place, gradient in gradients.items():
            square = torch.linalg.vector_norm(gradient, dtype=torch.float32).double() ** 2
            squares[0 if self.names[place] in self._owner else 1] += square
        (of_layers,) = self._stages.sum([squares[:1]])
        return math.sqrt(float(of_layers) + float(squares[1]))

    # --- whole --------------------------------------------------------------------------------------------------------

    def whole(self, tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> Mapping[str, Tensor]:
        own = {name: tensor for name, tensor in tensors.items() if self._owner.get(name) == self._stages.rank}
        full = {**tensors, **self._gathered(own)} if self._owner else tensors
        return {name: full[name] for name in self.names if name in full}

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        saved = optimizer.state_dict()
        name_of = {id(master): name for name, master in self.named()}
        names = [name_of[id(master)] for group in optimizer.param_groups for master in group["params"]]
        mine = self._stages.rank
        own = {index: of for index, of in saved["state"].items() if self._owner.get(names[index], mine) == mine}
        tensors = self._gathered(
            {
                f"{index} {key}": value
                for index, of in own.items()
                for key, value in of.items()
                if torch.is_tensor(value)
            }
        )
        plain = {index: {key: None if torch.is_tensor(v) else v for key, v in of.items()} for index, of in own.items()}
        merged = {index: of for part in self._stages.gather(plain) for index, of in part.items()}
        state = {
            index: {key: tensors.get(f"{index} {key}", value) for key, value in of.items()}
            for index, of in sorted(merged.items())
        }
        return {**saved, "state": state}

    @torch.no_grad()
    def _gathered(self, own: Mapping[str, Tensor], *, keeps: bool = True) -> dict[str, Tensor]:
        """The tensor of any rank; of replicated ones, the first rank's. Without `keeps`, only its shape."""
        kinds: dict[str, tuple[int, list[int], str]] = {}
        of_rank = {name: (list(of.shape), str(of.dtype).removeprefix("torch.")) for name, of in own.items()}
        for rank, names in enumerate(self._stages.gather(of_rank)):
            for name, (shape, dtype) in names.items():
                kinds.setdefault(name, (rank, shape, dtype))
        full = {}
        for name, (rank, shape, dtype) in kinds.items():
            device, of_type = self._device if keeps else "meta", getattr(torch, dtype)
            given = (
                _plain(own[name]).to(device)
                if rank == self._stages.rank
                else torch.zeros(shape, dtype=of_type, device=device)
            )
            full[name] = self._stages.sum([given.contiguous()])[0] if keeps else given
        return full

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Sample with the layers of all ranks, which are freed afterwards."""
        assert self._network is not None
        with self._with_layers(self._owner), self._network.undivided():
            yield

    @contextmanager
    def as_given(self, *, take: bool = False) -> Iterator[None]:
        """Inside the `with` block, the model has the trained parameters of all layers, and the frozen ones if the base
        trains."""
        with super().as_given(take=take), self._with_layers(set(self.names) if self._frozen else self._owner):
            yield

    @contextmanager
    def _with_layers(self, wanted: Collection[str]) -> Iterator[None]:
        """Inside the `with` block, the model has those parameters that other ranks have."""
        present = dict(self._model.named_parameters())
        own = {name: present[name] for name, rank in self._owner.items() if rank == self._stages.rank}
        full = self._gathered({name: of for name, of in own.items() if name in wanted})
        placed = [place for place in self._elsewhere if place[2] in wanted]
        before = [cast(nn.Parameter, module._parameters[attribute]) for module, attribute, _ in placed]
        for (module, attribute, name), was in zip(placed, before, strict=True):
            module._parameters[attribute] = nn.Parameter(full[name], requires_grad=was.requires_grad)
        try:
            yield
        finally:
            for (module, attribute, _), was in zip(placed, before, strict=True):
                module._parameters[attribute] = was


def _plain(tensor: Tensor) -> Tensor:
    """All its numbers, where ranks with the same layers divide it; they ask together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def _on_meta(parameter: nn.Parameter, dtype: torch.dtype | None = None) -> nn.Parameter:
    absent = torch.empty_like(parameter, device="meta", dtype=dtype)
    return nn.Parameter(absent, requires_grad=parameter.requires_grad)
