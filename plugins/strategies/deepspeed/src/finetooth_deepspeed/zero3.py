"""A model whose weights DeepSpeed spreads over the ranks: ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from finetooth_deepspeed.quiet import without_builds


class Zero3Model:
    """Implements `finetooth_hooks.protocols.DividedModel` by DeepSpeed's ZeRO-3.

    DeepSpeed lays the numbers of each weight in one row and keeps a rank's part of it; it gathers a decoder layer
    before its forward and its backward pass, and gives the others' parts up behind it. What lies in no layer
    (embeddings, norm, head) stays gathered, since the engine reads it outside its modules. Gradients are summed into
    parts as soon as the backward pass has made them.

    Args:
        model: adapted.
        layers: its decoder layers.
        dtype: what it computes in.
        on_host: a rank's part of the weights lies in host memory.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype, *, on_host: bool) -> None:
        deepspeed = without_builds()
        from deepspeed.accelerator import get_accelerator
        from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.utils.timer import NoopTimer

        self._world, rank = dist.get_world_size(), dist.get_rank()
        self._parameters = list(model.parameters())
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._gradients: dict[str, Tensor] = {}
        masters = {}
        for name, parameter in trained.items():
            whole = parameter.detach().reshape(-1)
            size = -(-whole.numel() // self._world)
            masters[name] = whole[rank * size : (rank + 1) * size].to(torch.float32, copy=True)
            parameter.data = parameter.data.to(dtype)
            parameter.register_post_accumulate_grad_hook(self._summing(name))  # type: ignore[no-untyped-call]
        for layer in layers:
            deepspeed.utils.set_z3_leaf_module(layer, True)  # gathered whole, whatever in it reads a weight
        host = {"device": "cpu", "pin_memory": get_accelerator().device_name() != "cpu"} if on_host else None
        zero = {"stage": 3, "memory_efficient_linear": False, "overlap_comm": False}
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {**zero, **({} if host is None else {"offload_param": host})},
        }
        deepspeed.init_distributed(dist_init_required=False)
        self._offload: Any = DeepSpeedZeRoOffload(
            model, NoopTimer(), settings, overlap_comm=False, prefetch_bucket_size=0, max_reuse_distance=0,
            param_persistence_threshold=-1,
            offload_param_config=None if host is None else DeepSpeedZeroOffloadParamConfig(**host),
        )  # fmt: skip
        in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self._elsewhere = [parameter for parameter in self._parameters if id(parameter) not in in_layers]
        self._keep(self._elsewhere)
        device = torch.device(get_accelerator().current_device_name())  # where parts of masters and gradients are
        mesh = init_device_mesh(device.type, (self._world,))
        self._trained = trained
        self._parts = {
            name: DTensor.from_local(
                masters[name].to(device), mesh, [Shard(0)], run_check=False, stride=(1,),
                shape=torch.Size([of.ds_numel]),  # type: ignore[attr-defined]
            )
            for name, of in trained.items()
        }  # fmt: skip

    def close(self) -> None:
        """Undo what DeepSpeed has done to the model."""
        self._offload.destroy()

    # --- what trains --------------------------------------------------------------------------------------------------

    def parts(self, names: Collection[str]) -> Mapping[str, DTensor]:
        """See `finetooth_hooks.protocols.DividedModel`: each in one row."""
        return {name: self._parts[name] for name in names}

    def gradients(self) -> Mapping[str, Tensor]:
        """See `finetooth_hooks.protocols.DividedModel`."""
        self._offload.release_backward_leftovers()
        gradients, self._gradients = self._gradients, {}
        return gradients

    @torch.no_grad()
    def publish(self) -> None:
        """See `finetooth_hooks.protocols.DividedModel`."""
        for name, part in self._parts.items():
            own = part.to_local()
            self._trained[name].ds_tensor.data[: own.numel()].copy_(own)  # type: ignore[attr-defined]
        trained = {id(parameter) for parameter in self._trained.values()}
        if whole := [parameter for parameter in self._elsewhere if id(parameter) in trained]:
            self._give_up(whole)
            self._keep(whole)

    def _summing(self, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                return
            size = -(-gradient.numel() // self._world)
            row = gradient.new_zeros(size * self._world, dtype=torch.float32)
            row[: gradient.numel()] = gradient.reshape(-1)
            part = row.new_empty(size)
            dist.reduce_scatter_tensor(part, row)
            part = part[: self._parts[name].to_local().numel()]
            before = self._gradients.get(name)
            self._gradients[name] = part if before is None else before.add_(part)

        return add

    # --- what computes ------------------------------------------------------------------------------------------------

    def computing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `finetooth_hooks.protocols.DividedModel`."""

        def computes(*arguments: Any, **options: Any) -> Any:
            self._offload.get_param_coordinator().reset_step()
            return function(*arguments, **options)

        return computes

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `finetooth_hooks.protocols.DividedModel`."""
        away = [parameter for parameter in self._parameters if not parameter.ds_persist]  # type: ignore[attr-defined]
        self._keep(away)
        try:
            yield
        finally:
            self._give_up(away)

    @classmethod
    @torch.no_grad()
    def whole(cls, parameter: Any) -> Tensor:
        """See `finetooth_hooks.protocols.Sharding`."""
        away = [] if parameter.ds_persist else [parameter]
        cls._keep(away)
        full: Tensor = parameter.to("cpu", copy=True)
        cls._give_up(away)
        return full

    @staticmethod
    def _keep(parameters: Sequence[Any]) -> None:
        """Gather them, and leave them gathered."""
        if parameters:
            parameters[0].all_gather(list(parameters))
        for parameter in parameters:
            parameter.ds_persist = True

    @staticmethod
    def _give_up(parameters: Sequence[Any]) -> None:
        """Keep this rank's part alone."""
        for parameter in parameters:
            parameter.ds_persist = False
            parameter.ds_active_sub_modules.clear()
        if parameters:
            parameters[0].partition(list(parameters))
