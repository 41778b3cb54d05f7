"""The strategy `fsdp`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective, Engine, Foreseen, Neighbours, Rank, Sharding, Strategy, Traffic
from finetooth_torchshared.collective import RowLine, TorchCollective, digest_of
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from finetooth_fsdp.one_row import keep_part, put_in_rows
from finetooth_fsdp.options import FsdpOptions
from finetooth_fsdp.tensor import divide_layer, tensor_plan
from finetooth_fsdp.traffic import traffic

# It tells the user to flatten a mesh, at every save of weights that are divided twice.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

COMPUTED = {"bf16": torch.bfloat16}
"""What parameters are gathered in, where that is not what they are held in."""


class Fsdp:
    """Implements `finetooth_hooks.protocols.ShardingStrategy`.

    Args:
        line: opens the line to all ranks and spreads the engine over them.
    """

    def __init__(self, options: FsdpOptions, line: Strategy) -> None:
        self._options, self._line = options, line
        self.wrap, self.close = line.wrap, line.close
        self._mesh: DeviceMesh | None = None
        self._rows: Collective | None = None
        self._parts: Neighbours | None = None
        self._neighbours: Neighbours | None = None
        self._islands, self._digest = 1, ""

    def open(self, rank: Rank, device: str, *, islands: int = 1) -> Collective:
        """See `finetooth_hooks.protocols.Strategy`.

        Args:
            islands: groups of neighbouring ranks that hold a model each and train apart.

        Raises:
            PlanError: the ranks cannot be grouped as the options say.
        """
        tensor, context, world = self._options.tensor, self._options.context, rank.world // islands
        replicas, parts = self._options.copies(world), self._options.parts(world)
        placed = torch.device(device)
        if placed.type != "cpu":
            torch.accelerator.set_device_index(placed.index or 0)  # a mesh is over the devices that ranks are at
        everyone = self._line.open(rank, device)
        sizes = (islands, replicas, parts, tensor)
        self._mesh = init_device_mesh(placed.type, sizes, mesh_dim_names=("islands", "replicas", "parts", "tensor"))
        self._parts = TorchCollective(group=self._mesh.get_group("parts"))
        if context > 1:  # neighbours are next to each other among the parts
            ranks = torch.arange(rank.world).view(-1, context, tensor).transpose(1, 2).reshape(-1, context)
            group, _ = dist.new_subgroups_by_enumeration(ranks.tolist())  # type: ignore[no-untyped-call]
            self._neighbours = TorchCollective(group=group)
        self._islands, together = islands, context * tensor
        self._rows = everyone if together == 1 else RowLine(everyone, together)
        return everyone

    def island(self) -> Collective:
        """The line between ranks that train rows of their own."""
        if self._rows is None:
            raise EngineError("fsdp: the other ranks were not met", action="call open first")
        return self._rows

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """See `finetooth_hooks.protocols.Strategy`."""
        return self._line.spread(engine, self.island() if self._islands == 1 else collective)

    def sharding(self, world: int) -> Sharding:
        """Everything, among the ranks that hold one model; nothing at a rank that is alone, which trains as without."""
        shards, tensor, context = self._options.parts(world), self._options.tensor, self._options.context
        parts = shards * tensor
        return Sharding(
            weights=shards, gradients=parts, optimizer=parts, shard=self._shard if world > 1 else None,
            layers=tensor, positions=context, neighbours=self._opened if context > 1 else None,
            sampled_by_layer=self._options.sampling == "layers", on_host=self._options.offload,
            stored=tensor == 1, keeps=self._keep if tensor == 1 < shards else None,
        )  # fmt: skip

    def traffic(self, parameters: int, world: int, *, run: Foreseen) -> Traffic:
        """See `finetooth_hooks.protocols.ForeseenStrategy`."""
        return traffic(self._options, parameters, world, run)

    def _opened(self) -> Neighbours:
        if self._neighbours is None:
            raise EngineError("fsdp: the other ranks were not met", action="call open first")
        return self._neighbours

    def _keep(self, path: str, module: nn.Module) -> None:
        assert self._mesh is not None and self._parts is not None
        keep_part(path, module, self._parts, self._mesh.device_type)

    def digest(self, engine: Engine) -> str:
        """SHA-256 of every parameter that trains, as it was before it was divided."""
        return self._digest or self._line.digest(engine)

    def _shard(self, model: nn.Module, layers: Sequence[nn.Module], precision: str) -> FullyShardedModel:
        if self._mesh is None:
            raise EngineError("fsdp: the other ranks were not met", action="call open first")
        self._digest = digest_of(model)
        computed = COMPUTED.get(precision)
        policy = MixedPrecisionPolicy(
            param_dtype=computed, reduce_dtype=None if computed is None else torch.float32, cast_forward_inputs=False
        )
        mesh = self._mesh["parts"] if self._mesh["replicas"].size() == 1 else self._mesh["replicas", "parts"]
        keeps, offloads = self._options.keep_layers, self._options.offload
        # pinned, so that copies need not wait for each other; a CPU copies nothing
        place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloads else OffloadPolicy()
        plan = tensor_plan(model, self._options.tensor) if self._options.tensor > 1 else {}
        for layer in layers:
            put_in_rows(layer)
            _hold_in_fp32(layer)  # in turn: the whole layer goes again where it is divided
            divide_layer(layer, plan, self._mesh["tensor"])
            fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=place, reshard_after_forward=not keeps)
        put_in_rows(model)
        _hold_in_fp32(model)
        elsewhere = {parameter for parameter in model.parameters() if parameter.is_meta}  # at ranks with other layers
        fully_shard(
            model, mesh=mesh, mp_policy=policy, offload_policy=place, reshard_after_forward=True,
            ignored_params=elsewhere,
        )  # fmt: skip
        # What the engine computes may be a view, and no engine changes it in place.
        view = rf"FSDP2-wrapped module \({type(model).__name__}\) returned a view"
        warnings.filterwarnings("ignore", view, category=UserWarning)
        return FullyShardedModel(model, {id(layer): not keeps for layer in layers})


class FullyShardedModel:
    """Implements `finetooth_hooks.protocols.ShardedModel` over torch's `fully_shard`.

    Args:
        model: the outermost module that is divided.
        reshards: by a module's identity, whether it gives up the others' parts behind its forward pass; others do.
    """

    def __init__(self, model: nn.Module, reshards: dict[int, bool]) -> None:
        self._model, self._numbers = model, count()
        self._modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._reshards = [reshards.get(id(module), True) for module in self._modules]
        for module in self._modules:
            module.set_gradient_divide_factor(1.0)  # losses are normalised over all ranks: gradients are summed
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)
        before = {id(hooks): set(hooks) for hooks in _state_dict_hooks(model)}
        self.computing(lambda: None)()  # torch takes the first module that computes for the outermost one
        self._hooks = [
            (hooks, {key: hook for key, hook in hooks.items() if key not in before[id(hooks)]})
            for hooks in _state_dict_hooks(model)
        ]

    def computing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `finetooth_hooks.protocols.ShardedModel`."""
        name = f"_finetooth_computes_{next(self._numbers)}"
        setattr(self._model, name, function)
        register_fsdp_forward_method(self._model, name)
        made: Callable[..., Any] = getattr(self._model, name)
        return made

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `finetooth_hooks.protocols.ShardedModel`."""
        for module in self._modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        for hooks, added in self._hooks:  # with them, readers of a state dict would give the others' parts up
            for key in added:
                del hooks[key]
        try:
            yield
        finally:
            for hooks, added in self._hooks:
                hooks.update(added)
            for module, reshards in zip(self._modules, self._reshards, strict=True):
                module.set_reshard_after_forward(reshards, recurse=False)
            # Gives the others' parts up, and forgets the passes since the last step. In backward, torch gathers layers
            # in their order, and each rank samples for as many passes as its own prompts take.
            self._modules[0].reset_iter_state()


def _hold_in_fp32(module: nn.Module) -> None:
    """Make what trains of a module fp32, and has memory."""
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor) and not parameter.is_meta:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def _state_dict_hooks(model: nn.Module) -> list[dict[int, Any]]:
    """What is called before a state dict is read or loaded, of every module."""
    return [
        hooks
        for module in model.modules()
        for hooks in (module._state_dict_pre_hooks, module._load_state_dict_pre_hooks)
    ]
