"""Checks and memory of ranks that hold parts of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from finetooth_hooks import Decision, MemoryEstimate, PlanError
from finetooth_hooks.protocols import PlanRequest, Sharding
from finetooth_toolbox.attention_choice import demands_of

from finetooth_torch.planning.attention import AttentionChoice
from finetooth_torch.planning.base_bytes import kept_by_others, resident_bytes
from finetooth_torch.planning.layer_memory import BYTES
from finetooth_torch.planning.memory import EARLIER, STATE_ELSEWHERE, layers_bytes
from finetooth_torch.planning.offload import DEVICE, Offload
from finetooth_torch.planning.process_memory import reads_apart
from finetooth_torch.planning.row_sharing import obstacle

PRECISIONS = ("fp64", "fp32", "bf16")
STEPS = ("in_backward", "averages")
"""Capabilities of optimizers that need all gradients or weights at one rank."""
OWN_ORDER = ("in_turn", "masterless")
"""Capabilities of optimizers that update blocks in turn or keep no masters."""
GATHERED_LAYERS = 2
"""Layers that a device holds whole at once: the current one, and the next, which is being gathered."""


def check_sharding(request: PlanRequest, precision: str, offload: Offload, *, share_base: bool) -> None:
    """Checks that the recipe's settings work with a sharded or staged model.

    Raises:
        PlanError: a setting needs whole models, or a method does not support ranks.
    """
    sharding = request.place.sharding
    if "module" in request.needs and request.place.collective is not None:
        raise PlanError(
            "method: a library of its own drives the model, and would do so at each rank by itself",
            action="set scale.devices: 1, or choose another method",
        )
    if sharding is None:
        return
    if sharding.shard is None and sharding.stages is None:
        if sharding.optimizer > 1:
            _check_spread(request)
        return
    from finetooth_torchshared.elementwise import obstacle_to_layers, obstacle_to_parts

    adapter, updates = request.trains.adapter.capabilities, request.updates
    words = updates.optimizer.capabilities
    staged, layers = sharding.stages is not None, request.base.facts.layers
    on_one = "or a strategy that leaves the model whole (scale.strategy: ddp)"
    if request.train.precision == "fp8" or precision not in PRECISIONS:
        problem, action = f"train.precision={precision}", "set train.precision to bf16 or fp32"
    elif request.base.stored is not None and not sharding.stored:
        problem = f"the base's weights are stored in fewer bits ({request.base.stored.name})"
        action = "set scale.strategy: fsdp without tensor, load it as plain numbers"
    elif {"changes", "rounds"} & adapter:
        problem, action = "the adapter changes the model between steps", "pick another adapter"
    elif {*OWN_ORDER, *((*STEPS, *STATE_ELSEWHERE) if staged else ())} & words:
        problem = f"optimizer: {updates.name} as it is set keeps or updates weights in an order of its own"
        action = "pick adamw as it is by default"
    elif share_base:
        problem, action = "backend.share_base shares whole weights between engines", "leave backend.share_base out"
    elif offload.activations != DEVICE:
        problem, action = f"backend.activations={offload.activations}", "leave backend.activations out"
    elif staged and offload.layers != DEVICE:
        problem, action = f"backend.layers={offload.layers}", "leave backend.layers out"
    elif sharding.layers > 1 and _drops_attention(request):
        problem = "ranks have some attention heads each, and the model drops weights of attention (attention_dropout)"
        action = "set model.attention_dropout to 0, leave scale.strategy.tensor out"
    elif sharding.stage_count > layers:
        problem = f"{layers} layers are fewer than {sharding.stage_count} ranks"
        action = f"set scale.strategy.stages to at most {layers}"
    elif staged and (others := sorted(role for role, of in request.roles.items() if of.model is not None)):
        problem = f"the method needs another model as {', '.join(others)}, whose layers are not divided"
        action = "set scale.strategy: fsdp"
    elif staged and (obstacle := obstacle_to_layers(updates.optimizer)):
        problem = f"optimizer: {updates.name} cannot update some layers without the others: {obstacle}"
        action = "pick an optimizer that treats every weight by itself, such as adamw or muon"
    elif sharding.shard is not None and (obstacle := obstacle_to_parts(updates.optimizer)):
        problem = f"optimizer: {updates.name} cannot update a part of a matrix, and no rank has a whole one: {obstacle}"
        action = "pick an optimizer that treats every number by itself, such as adamw"
    else:
        return
    raise PlanError(f"scale.strategy: it divides the model among ranks: {problem}", action=f"{action}, {on_one}")


def _spreads(sharding: Sharding) -> bool:
    """Whether each rank has the whole model and a part of the optimizer's state."""
    return sharding.shard is None and sharding.stages is None and sharding.optimizer > 1


def _check_spread(request: PlanRequest) -> None:
    """
    Raises:
        PlanError: the optimizer needs every weight at every rank, or makes the update itself.
    """
    from finetooth_torchshared.elementwise import obstacle_to_parts

    updates = request.updates
    unfit = sorted({*STEPS, *OWN_ORDER} & set(updates.optimizer.capabilities))
    reason = f"it has the capability {unfit[0]}" if unfit else obstacle_to_parts(updates.optimizer)
    if reason:
        raise PlanError(
            f"scale.strategy: each rank updates a part of the weights, and {updates.name} cannot: {reason}",
            action="set optimizer: adamw, or scale.strategy: ddp",
        )


def _drops_attention(request: PlanRequest) -> bool:
    return any(demand.dropout for demand in demands_of(request.base.model.config, request.base.facts))


def check_slicing(request: PlanRequest, attention: AttentionChoice | None) -> None:
    """Checks that the model and the settings allow ranks to divide the positions of rows.

    Args:
        attention: of the model's own code.

    Raises:
        PlanError: the recipe divides positions of rows, and the model or a setting needs them together.
    """
    if request.place.sharding is None or request.place.sharding.positions == 1:
        return
    assert attention is not None
    if problem := obstacle(request.base.model.config, attention, divided=True):
        action = "choose another model"
    elif _drops_attention(request):
        problem, action = "the model drops weights of attention (attention_dropout)", "set model.attention_dropout to 0"
    elif "trees" in request.needs:
        problem, action = "segments of the method's data continue one another", "choose another method"
    elif "repetition_penalty" in request.needs:
        problem, action = "a loss with a repetition penalty reads what stands before a position", "leave it at 1"
    else:
        return
    raise PlanError(
        f"scale.strategy: it divides the positions of rows among ranks: {problem}",
        action=f"{action}, or set scale.strategy: ddp",
    )


def divided(request: PlanRequest) -> tuple[Decision, ...]:
    """The plan's decisions on what ranks divide."""
    sharding = request.place.sharding
    held = {} if sharding is None else sharding.held()
    return tuple(
        Decision(f"scale.{name}", f"1/{ranks}", f"each rank holds {what}") for name, (ranks, what) in held.items()
    )


def of_one_rank(
    estimate: Callable[[], MemoryEstimate], request: PlanRequest, precision: str, tokens: int, *, checkpointing: bool
) -> MemoryEstimate:
    """Memory of one rank.

    Args:
        estimate: without division.
        tokens: positions of a micro-batch.
        checkpointing: the backward pass recomputes layers.
    """
    whole, sharding = estimate(), request.place.sharding
    if sharding is None:
        return whole
    if _spreads(sharding):
        return _of_spread_optimizer(whole, request, sharding.optimizer)
    staged = sharding.stages is not None
    if staged:
        whole = _of_stage(whole, request, precision, sharding.stage_count)
    if sharding.positions > 1:
        whole = _of_positions(whole, request, precision, tokens, checkpointing=checkpointing)
    if sharding.shard is None:
        return whole
    size, trained, layers = BYTES[precision], request.trains.parameters, request.base.facts.layers
    gathered = resident_bytes(request.base, precision) + (trained * size if request.trains.base_frozen else 0)
    in_layers = min(gathered, layers_bytes(request, precision))
    elsewhere, read = gathered - in_layers, gathered - kept_by_others(request)
    if staged:
        layers = -(-layers // sharding.stage_count)
        in_layers = in_layers * layers // request.base.facts.layers
        trained = int(trained * _shares(request, precision, sharding.stage_count)[1])
        read = elsewhere + in_layers if reads_apart(request) else gathered
        gathered = elsewhere + in_layers
    in_layers //= sharding.layers
    parts, host = dict(whole.parts), dict(whole.host)
    of_head = parts["gradients"] - 4 * trained  # while they are made
    if sharding.divided:
        masters = 4 * trained // sharding.weights
        of_base = (parts["weights"] - (4 * trained if size < BYTES["fp32"] else 0)) // sharding.weights
        waiting = of_base if sharding.on_host and request.place.hardware.device != "cpu" else 0
        parts["weights"] = masters + of_base - waiting
        host |= {"weights": waiting} if waiting else {}
    else:
        # trained weights are in fp32 only, and converted to the model's precision when gathered
        weights = parts["weights"] - (trained * size if size < BYTES["fp32"] else 0)
        parts["weights"] = (weights * (elsewhere + in_layers) // max(gathered, 1)) // sharding.weights
    parts["optimizer"] //= sharding.optimizer
    host |= {"optimizer": host["optimizer"] // sharding.optimizer} if "optimizer" in host else {}
    made = max(of_head, (size + 4) * trained // layers)
    away = not sharding.divided and sharding.on_host and request.place.hardware.device != "cpu"
    if sharding.weights * sharding.layers > 1:
        sampled_whole = "generate" in request.needs and not sharding.sampled_by_layer
        at_once = in_layers if sampled_whole else min(in_layers, GATHERED_LAYERS * in_layers // layers)
        if away:  # the rank's part of the next layer is copied to the device first
            coming = [parts["weights"] * of // max(gathered, 1) for of in (elsewhere, in_layers // layers)]
            at_once = max(coming[0], at_once + coming[1])
        parts["gathered"] = parts.get("gathered", 0) + elsewhere + at_once
        # Gradients outside layers are whole, and summed in fp32 after the last gather.
        last = 0 if request.trains.base_frozen else (size + 4) * elsewhere // size
        made = max(made, last - parts["gathered"])
    parts["gradients"] = 4 * trained // sharding.gradients + made
    host.pop(EARLIER, None)
    parts |= {EARLIER: parts["gradients"] - made} if request.several_calls else {}
    if away:
        moved = {
            "gradients": parts["gradients"] - made,
            **({EARLIER: parts.pop(EARLIER)} if EARLIER in parts else {}),
            "optimizer": host.get("optimizer", 0) + parts["optimizer"],
            "update": int(request.updates.update_bytes * trained) // sharding.optimizer,
        }
        host |= {"weights": parts["weights"], **moved, "loading": max(0, host["loading"] - sum(moved.values()))}
        parts |= {"weights": 0, "gradients": made, "optimizer": 0, "update": 0}
    if "gathered" in parts and request.place.hardware.device == "cpu":  # every rank reads the whole model first
        later = sum(taken for name, taken in parts.items() if name not in ("overhead", "loading"))
        parts["loading"] = max(parts.get("loading", 0), read - later, 0)
    return replace(whole, parts=parts, host=host)


def _of_positions(
    whole: MemoryEstimate, request: PlanRequest, precision: str, tokens: int, *, checkpointing: bool
) -> MemoryEstimate:
    """Memory with a share of the positions, and the keys and values of whole rows."""
    assert request.place.sharding is not None
    facts, parts = request.base.facts, dict(whole.parts)
    if "generate" not in request.needs:  # every rank samples by itself
        parts["activations"] //= request.place.sharding.positions
    of_layer = 2 * max(tokens, request.data.longest) * facts.kv_heads * facts.head_dim * BYTES[precision]
    # with their gradients in the backward pass
    parts["gathered"] = parts.get("gathered", 0) + of_layer * ((1 if checkpointing else facts.layers) + 1)
    return replace(whole, parts=parts)


def _of_stage(whole: MemoryEstimate, request: PlanRequest, precision: str, stages: int) -> MemoryEstimate:
    """Memory with a share of the layers, and everything outside them. Activations take as much as without: a stage
    holds those of as many micro-batches as there are stages (`1f1b`)."""
    base, layers = resident_bytes(request.base, precision), layers_bytes(request, precision)
    share, of_layers = _shares(request, precision, stages)
    parts = dict(whole.parts)
    parts["weights"] = int(base * share + (parts["weights"] - base) * of_layers)
    if "generate" in request.needs:
        parts["gathered"] = int(layers * (1 - 1 / stages))
    host = dict(whole.host)
    for pool, name in ((parts, "gradients"), (parts, "optimizer"), (parts, EARLIER), (host, EARLIER)):
        if name in pool:
            pool[name] = int(pool[name] * of_layers)
    if request.place.hardware.device == "cpu" and not reads_apart(request):  # every rank reads the whole model first
        later = sum(taken for name, taken in parts.items() if name not in ("overhead", "loading"))
        parts["loading"] = max(parts.get("loading", 0), whole.parts["weights"] - later, 0)
    return replace(whole, parts=parts, host=host)


def _shares(request: PlanRequest, precision: str, stages: int) -> tuple[float, float]:
    """Shares of the weights, and of the trained ones, at the stage with the most layers."""
    largest = -(-request.base.facts.layers // stages) / request.base.facts.layers
    size = resident_bytes(request.base, precision)
    share = 1 - (1 - largest) * layers_bytes(request, precision) / max(size, 1)
    return share, largest if request.trains.base_frozen else share  # an adapter is inside layers


def _of_spread_optimizer(whole: MemoryEstimate, request: PlanRequest, ranks: int) -> MemoryEstimate:
    """Memory with a rank's part of the optimizer's state, and of an fp32 copy of the weights, which it updates."""
    kept = whole.parts["optimizer"] + BYTES["fp32"] * request.trains.parameters
    return replace(whole, parts={**whole.parts, "optimizer": -(-kept // ranks)})
