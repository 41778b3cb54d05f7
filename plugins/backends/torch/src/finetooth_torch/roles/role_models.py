"""Roles with separate weights: copies of the trained weights, or other models, frozen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import Context, PlanError
from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.protocols import EngineRequest, ModelFacts, ModelInfo, RoleRequest
from finetooth_modelfiles.sizes import role_quantizer

from finetooth_torch.planning.decisions import STREAM, choose_decoder, stream_obstacle
from finetooth_torch.planning.offload import DEVICE
from finetooth_torch.roles.frozen_copy import FrozenCopy
from finetooth_torch.roles.layer_places import place_layers
from finetooth_torch.updates.parameters import TrainedParameters

if TYPE_CHECKING:
    from finetooth_torch.backend import TorchOptions
    from finetooth_torch.network import Network


class NoAdapter(AdapterBase):
    """The adapter of a model without an adapter."""

    capabilities = frozenset({"disable"})

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        return 0

    def apply(self, model: Any, facts: ModelFacts, generator: Any) -> Any:
        return model

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        raise PlanError("a frozen model is not exported", action="export the policy")

    def restore(self, model: Any, folder: Path) -> None:
        raise PlanError("a frozen model takes no weights", action="restore the policy")


def hold_roles(
    network: Network, request: EngineRequest, parameters: TrainedParameters, options: TorchOptions,
    context: Context | None,
) -> None:  # fmt: skip
    """Give the network the models of the request's roles."""
    for role, wanted in request.roles.items():
        other = wanted.model is not None
        network.holders[role] = _other(request, wanted, options, context) if other else FrozenCopy(parameters)
    others = [holder for holder in network.holders.values() if not isinstance(holder, FrozenCopy)]
    if any(other.rows.obstacle for other in others):  # if it cannot keep segments apart, rows are padded for both
        network.rows = replace(network.rows, filling=None)


def _other(request: EngineRequest, wanted: RoleRequest, options: TorchOptions, context: Context | None) -> Network:
    """Another model, frozen, with the precision and quantisation of the policy's base."""
    from finetooth_torchshared.float8 import multiply_in_fp8, plain_linears

    from finetooth_torch.attention.agreement import apply_attention
    from finetooth_torch.compute import FP8, WINDOWED, Compute
    from finetooth_torch.decoder.wide_residual import widen_residual
    from finetooth_torch.network import Network

    assert wanted.model is not None and wanted.facts is not None and wanted.loader is not None
    precision = request.plan.train.precision
    assert precision is not None
    quantizer = role_quantizer(request.base, wanted)
    elsewhere = options.role_layers != DEVICE
    base = wanted.loader.load(
        wanted.model.reference, framework="torch", precision=precision,
        device="cpu" if elsewhere else request.place.hardware.device, quantizer=quantizer,
    )  # fmt: skip
    if FP8 in request.compute.kernels:
        linears = plain_linears(base.get_submodule(wanted.facts.layer_path))
        multiply_in_fp8(linears, request.compute.kernels[FP8].function)
    hardware = request.place.hardware
    decoder = "transformers" if elsewhere else "auto" if options.decoder == STREAM else options.decoder
    compute = Compute.of(request.compute.kernels)
    brought = compute.stream_decoder is not None
    reason = stream_obstacle(
        wanted.facts, hardware, options.attention, config=wanted.model.config, windows=WINDOWED in compute.providers
    )
    chosen = choose_decoder(reason, hardware, decoder, brought=brought)
    stream = chosen.value == STREAM
    attention = apply_attention(
        base, options.attention, wanted.facts, wanted.model.config, hardware, precision, context, of_transformers=stream
    )
    base.requires_grad_(False)
    if not stream:  # before accelerate replaces what modules compute
        widen_residual(base, wanted.facts, context)
    if elsewhere:
        place_layers(base, wanted.facts, options.role_layers, hardware.device)
    return Network(
        base, base, wanted.facts, NoAdapter(), can_disable=False, checkpointing=False, stream=stream,
        attention=attention, compute=compute,
    )  # fmt: skip


def copies(network: Network) -> dict[str, FrozenCopy]:
    """The roles that are copies of the policy."""
    return {role: holder for role, holder in network.holders.items() if isinstance(holder, FrozenCopy)}


def move_copy(network: Network, role: str, mix: float) -> None:
    """See `finetooth_hooks.engine.Engine.move_role`."""
    copy = copies(network).get(role)
    if copy is None:
        raise PlanError(
            f"the role {role!r} is not a copy of the policy, and only a copy can follow it",
            action="set the method's reference to frozen-copy, or leave sync_every out",
        )
    copy.move(mix)
