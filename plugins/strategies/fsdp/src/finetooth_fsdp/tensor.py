"""Tensor parallelism inside a decoder layer, by the plan that transformers gives for the family.

A weight that is divided by its outputs (`colwise`) gives a rank the outputs of its own attention heads and MLP units.
The weight behind it is divided by its inputs (`rowwise`), and its products are summed over the ranks (Shoeybi et al.,
2019, arXiv:1909.08053). Gradients of what several weights read (query, key and value; gate and up) are summed once. A
low-rank addition follows the weight that it is added to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks import PlanError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


class _Summed(torch.autograd.Function):
    """Its input; the gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Colwise(ColwiseParallel):
    """Torch sums the gradient of its input behind each module. Here all that read one tensor share one sum, which
    hangs on that tensor and goes with it."""

    @staticmethod
    def _prepare_input_fn(layouts: Any, wanted: Any, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> DTensor:
        (given,) = inputs
        if torch.is_grad_enabled() and given.requires_grad:
            if not hasattr(given, SHARED):
                setattr(given, SHARED, _Summed.apply(given, mesh.get_group()))  # type: ignore[no-untyped-call]
            given = getattr(given, SHARED)
        return DTensor.from_local(given, mesh, layouts, run_check=False, grad_placements=[Partial()])


SHARED = "_finetooth_summed"
STYLES = {"colwise": _Colwise, "rowwise": RowwiseParallel}
NORM = "replicated_with_grad_allreduce"
"""A norm over each head: its weight is whole at every rank, and sees only the heads of the rank."""
LAYERS = "layers.*."


def check_config(given: Mapping[str, Any], size: int) -> None:
    """Check by its config, before its weights are loaded, that a model can be divided. A model type that transformers
    does not know is checked when the model is there.

    Raises:
        PlanError: see `tensor_plan`.
    """
    from transformers import CONFIG_MAPPING

    kind = str(given.get("model_type"))
    if kind in CONFIG_MAPPING:
        config = CONFIG_MAPPING[kind].from_dict(dict(given))
        _plan_of([config, config.get_text_config()], size)


def tensor_plan(model: nn.Module, size: int) -> Mapping[str, str]:
    """How each module of a decoder layer is divided, by its path in the layer.

    Args:
        size: ranks that compute together.

    Raises:
        PlanError: transformers has no plan for the family, or one with more than this strategy knows; or the attention
            heads cannot be divided.
    """
    return _plan_of([module.config for module in model.modules() if hasattr(module, "config")], size)


def _plan_of(configs: Sequence[Any], size: int) -> Mapping[str, str]:
    config: Any = next((config for config in configs if getattr(config, "base_model_tp_plan", None)), None)
    if config is None:
        raise _refused("the model's family has no plan for it in transformers")
    plan = {
        path.removeprefix(LAYERS): how for path, how in config.base_model_tp_plan.items() if path.startswith(LAYERS)
    }
    unknown = sorted({how for how in plan.values() if how not in (*STYLES, NORM)})
    if unknown:
        raise _refused(f"the plan of {config.model_type} in transformers uses {', '.join(unknown)}")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name, size) % size:
            raise _refused(f"the model has {name}={getattr(config, name)}, which {size} ranks cannot share")
    return plan


def divide_layer(layer: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Divide a decoder layer among the ranks of a mesh.

    Raises:
        PlanError: an adapter, or what trains, cannot be divided.
    """
    for path, how in plan.items():
        try:
            module: Any = layer.get_submodule(path)
        except AttributeError:  # a layer of another kind
            continue
        if how == NORM:
            if any(parameter.requires_grad for parameter in module.parameters()):
                raise _refused(f"{path} trains, and each rank sees some of the heads that share it")
            continue
        linears, dropouts = _linears(path, module, how)
        for dropout in dropouts:  # of which each rank has some columns
            width = linears[0].in_features
            dropout.columns = mesh.get_local_rank() * (width // mesh.size()), width
        for linear in linears:
            parallelize_module(linear, mesh, STYLES[how]())


def _linears(path: str, module: Any, how: str) -> tuple[list[nn.Linear], list[Any]]:
    """Modules that are divided in place of one: the module, or its base and one side of its low-rank addition; and
    those that drop from inputs that are divided."""
    if type(module) is nn.Linear:
        return [module], []
    base, side = getattr(module, "base_layer", None), "lora_B" if how == "colwise" else "lora_A"
    if type(base) is not nn.Linear or not hasattr(module, side) or getattr(module, "lora_variant", None):
        raise _refused(f"{path} is not a linear module of plain numbers, with or without LoRA")
    dropouts = [dropout for dropout in module.lora_dropout.values() if not isinstance(dropout, nn.Identity)]
    return [base, *getattr(module, side).values()], dropouts if how == "rowwise" else []


def _refused(why: str) -> PlanError:
    return PlanError(f"scale.strategy.tensor: {why}", action="leave tensor out")
