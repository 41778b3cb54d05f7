"""Offloading: whether it can work, and what stays on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from finetooth_hooks import Decision, MemoryEstimate, PlanError, install_command
from finetooth_hooks.protocols import ModelFacts, PlacePart, PlanRequest
from finetooth_modelfiles.sizes import role_quantizer

DEVICE, HOST, DISK, SPREAD = "device", "host", "disk", "spread"
PIECES = "backend.feed_forward_tokens"
SHARES = {"cpu": "a CPU", "mps": "a Mac"}
"""Kinds of devices without memory of their own."""


@dataclass(frozen=True)
class Offload:
    """See `TorchOptions`.

    Attributes:
        activations, layers: `device`, `host` or `disk`.
        window: layers on the device at once, if the others are elsewhere.
        roles: place of other models' layers: `device`, `host`, `disk` or `spread`.
        pieces: tokens for which a feed-forward block is computed at once; 0: all of a micro-batch.
    """

    activations: str = DEVICE
    layers: str = DEVICE
    window: int = 4
    pieces: int = 0
    roles: str = DEVICE

    @property
    def any(self) -> bool:
        """Whether anything is kept off the device."""
        return self.activations != DEVICE or self.layers != DEVICE

    @property
    def reason(self) -> str:
        """Why the model's own code has to compute the layers; else empty."""
        if self.layers != DEVICE:
            return f"backend.layers={self.layers} lends layers to the model's own modules"
        if self.activations != DEVICE:
            return f"backend.activations={self.activations} takes them from the model's own code, one by one"
        return ""


ON_DEVICE = Offload()
"""Nothing is elsewhere."""


def check_offload(request: PlanRequest, offload: Offload) -> None:
    """Checks that offloading can work with the adapter, the device and the ranks.

    Raises:
        PlanError: it saves nothing here, or cannot work.
    """
    by_setting = {"activations": offload.activations, "layers": offload.layers, "role_layers": offload.roles}
    for setting, where in by_setting.items():
        shares = shares_memory(request.place)
        if shares and where in (HOST, SPREAD):
            raise PlanError(
                f"backend.{setting}={where}: on {shares} the memory of the device is that of the host",
                action=f"set backend.{setting} to disk, or leave it out",
            )
    if offload.pieces:
        feed_forward_path(request.base.facts)
        if in_parts(request.place):
            raise PlanError(
                f"{PIECES}: scale.strategy divides the model or rows",
                action=f"leave {PIECES} out, or set scale.strategy: ddp",
            )
    if offload.roles != DEVICE:
        _check_roles(request, offload.roles)
    if offload.layers == DEVICE:
        return
    where = f"backend.layers={offload.layers}"
    if not request.trains.base_frozen:
        raise PlanError(
            f"{where}: the adapter trains weights of the base, and layers that come and go must stay as they are",
            action="pick a low-rank adapter, or leave backend.layers out",
        )
    if "changes" in request.trains.adapter.capabilities:
        raise PlanError(
            f"{where}: the adapter changes the base between steps, and layers that come and go must stay as they are",
            action="pick another adapter, or leave backend.layers out",
        )
    if among_ranks(request.place):
        raise PlanError(f"{where}: it is for one rank", action="leave strategy or backend.layers out")


def shares_memory(place: PlacePart) -> str:
    """The kind of a device whose memory is the host's; empty if it has memory of its own."""
    return SHARES.get(place.hardware.device.partition(":")[0], "")


def in_one_pool(memory: MemoryEstimate) -> MemoryEstimate:
    """An accelerator's estimate with the host's parts among the device's, which shares the host's memory."""
    parts = Counter(memory.parts)
    parts.update(memory.host)
    if "loading" in parts:  # the base is read before anything but weights is there
        later = sum(parts.values()) - sum(parts[name] for name in ("weights", "overhead", "loading"))
        parts["loading"] = max(0, parts["loading"] + memory.host.get("snapshots", 0) - later)
    return replace(memory, parts=dict(parts), host={})


def _check_roles(request: PlanRequest, where: str) -> None:
    others = {name: role for name, role in request.roles.items() if role.model is not None}
    setting, action = f"backend.role_layers={where}", "leave backend.role_layers out"
    if not others:
        raise PlanError(f"{setting}: the method asks no other model", action=action)
    if find_spec("accelerate") is None:
        raise PlanError(
            f"{setting}: accelerate is not installed", action=install_command("finetooth-torch[accelerate]")
        )
    for name, role in others.items():
        if role_quantizer(request.base, role) is not None or (role.model is not None and role.model.stored):
            raise PlanError(f"{setting}: the model of the role {name} is stored in fewer bits", action=action)
    if where == SPREAD and among_ranks(request.place):
        raise PlanError(
            f"{setting}: other ranks compute on the other devices", action="set backend.role_layers to host or disk"
        )


def among_ranks(place: PlacePart) -> bool:
    """Whether other ranks train the same parameters; a plan may be made before they connect."""
    return place.collective is not None or place.wrap is not None


def in_parts(place: PlacePart) -> bool:
    """Whether ranks have parts of the model or of rows."""
    of = place.sharding
    return of is not None and (of.shard is not None or of.stages is not None or of.positions > 1)


def feed_forward_path(facts: ModelFacts) -> str:
    """The feed-forward module of a layer.

    Raises:
        PlanError: the family does not name it.
    """
    block = facts.block
    path = "" if block is None else block.feed_forward or block.down.rpartition(".")[0]
    if not path:
        raise PlanError(
            f"{PIECES}: the model's family does not say where its feed-forward blocks are",
            action=f"leave {PIECES} out",
        )
    return path


def decisions(request: PlanRequest, offload: Offload) -> Iterator[Decision]:
    """Decisions on offloading, with reasons."""
    if offload.pieces:
        price = "the same numbers, feed-forward blocks are computed once more"
        yield Decision(PIECES, offload.pieces, f"the recipe says so: {price}")
    if offload.activations != DEVICE:
        price = "the same numbers, more time"
        yield Decision("backend.activations", offload.activations, f"the recipe says so: {price}")
    if offload.layers != DEVICE:
        layers = request.base.facts.layers
        width = min(offload.window, layers)
        why = f"the recipe says so: {width} of {layers} at a time on the device"
        yield Decision("backend.layers", offload.layers, why)
    if offload.roles != DEVICE:
        why = "the recipe says so: layers of other models come to where they compute one by one, by accelerate"
        yield Decision("backend.role_layers", offload.roles, why)


def layers_apart(request: PlanRequest, offload: Offload, weights: int, outside: int) -> int:
    """Bytes of the decoder layers that are not on the device.

    Args:
        weights: bytes of the base.
        outside: of these, bytes outside decoder layers.
    """
    if offload.layers == DEVICE:
        return 0
    layers = request.base.facts.layers
    return (weights - outside) * (layers - min(offload.window, layers)) // layers
