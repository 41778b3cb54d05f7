"""Estimates and measures the memory of a run."""

from __future__ import annotations

import math

from finetooth_hooks import MemoryEstimate
from finetooth_hooks.protocols import BasePart, PlanRequest
from finetooth_steps.layout import least_saved, worth_sharing
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.gpus import CONTEXT

from finetooth_torch.planning.base_bytes import resident_bytes
from finetooth_torch.planning.fp8 import FP8, kept_bytes, rounding_bytes
from finetooth_torch.planning.graphs import graph_bytes
from finetooth_torch.planning.layer_memory import (
    BYTES,
    UNKNOWN_LAYERS,
    HeldByAttention,
    accelerator_backward_bytes,
    accelerator_layer_bytes,
    backward_bytes,
    by_layer,
    feed_forward_bytes,
    generation_bytes,
    layer_bytes,
    low_rank_bytes,
    own_bytes,
    residual_bytes,
    score_bytes,
    split_bytes,
    stream_layer_bytes,
    without_feed_forward,
)
from finetooth_torch.planning.offload import DEVICE, DISK, HOST, ON_DEVICE, SPREAD, Offload, layers_apart
from finetooth_torch.planning.process_memory import host_overhead, loading_bytes
from finetooth_torch.planning.role_memory import role_bytes, role_layers_apart
from finetooth_torch.planning.routers import NO_ROUTERS, RouterCoefficients
from finetooth_torch.planning.row_sharing import largest_positions

GENERATION_BATCHES = 4
"""Positions of a sampling batch, in micro-batches."""


FRAGMENTATION = {"fp32": 1.75, "bf16": 1.45, "fp16": 1.45, "fp64": 1.75}
"""On a host, resident memory per byte of saved activations: malloc cannot reuse the holes that short-lived tensors
leave between long-lived ones. Measured on SmolLM2-135M (glibc); separate pages for each tensor avoid it and cost a
third of the speed."""

DEVICE_OVERHEAD = CONTEXT + 128 * 2**20
"""Accelerator memory of the framework: its context, and workspaces of products."""

SLACK = 1.05
"""Memory that torch's allocator holds on an accelerator per byte of activations: blocks are larger than their
tensors."""

EARLIER = "earlier_gradients"
"""The part for the gradients of a step's earlier calls, which are restored if a call fails."""

EARLIER_SHARE = 1 / 16
"""The most of an accelerator's memory for them; more are copied to host memory."""

FOLDING = 150 * 2**20
"""Memory of merging an adapter into its base, without the base in fp32: peft, and copies of one weight at a time,
measured on SmolLM2-135M."""


def estimate(
    request: PlanRequest,
    precision: str,
    micro_batch_tokens: int,
    *,
    checkpointing: bool,
    stream: bool,
    attention: HeldByAttention | None = None,
    offload: Offload = ON_DEVICE,
    routers: RouterCoefficients = NO_ROUTERS,
    graphs: bool = False,
) -> MemoryEstimate:
    """Peak memory by parts, before any weight is loaded.

    Args:
        stream: the stream decoder computes the layers. Otherwise activations are those of transformers' Llama; other
            families differ little.
        attention: of the model's own code; None: fused, and no rows are shared.
        offload: what is kept off the device.
        routers: whether a mixture's routers have losses.
        graphs: sampling replays graphs.
    """
    routed = routers.bytes_per_token(request.base.facts)
    of_attention = attention or HeldByAttention()
    if request.place.hardware.device != "cpu":
        return _on_accelerator(
            request, precision, micro_batch_tokens, offload, routed, checkpointing=checkpointing, stream=stream,
            attention=of_attention, graphs=graphs,
        )  # fmt: skip
    return _on_host(
        request, precision, micro_batch_tokens, offload, routed, checkpointing=checkpointing, stream=stream,
        attention=attention,
    )  # fmt: skip


def _on_accelerator(
    request: PlanRequest, precision: str, micro_batch_tokens: int, offload: Offload, routed: int, *,
    checkpointing: bool, stream: bool, attention: HeldByAttention, graphs: bool,
) -> MemoryEstimate:  # fmt: skip
    """`routed`: bytes per token that losses of routers keep until the backward pass."""
    from finetooth_kernels.contract import chunk_bytes_on

    facts, size = request.base.facts, BYTES[precision]
    trained, full = request.trains.parameters, _trains_base(request)
    tokens = tokens_at_once(request, micro_batch_tokens, packed=stream)
    own = own_bytes(request, precision, stream=stream)
    residual = residual_bytes(precision, stream=stream)
    held = without_feed_forward(request) if offload.pieces else request
    if stream:
        own += low_rank_bytes(request, precision)
        layer = by_layer(
            held, precision, lambda alike: own + stream_layer_bytes(alike, precision) + kept_bytes(alike), full=full
        )
        passing = backward_bytes(held, precision)
    else:
        layer = by_layer(
            held, precision,
            lambda alike: own + accelerator_layer_bytes(alike, precision, full=full, attention=attention),
            full=full, unknown=UNKNOWN_LAYERS, residual=residual,
        )  # fmt: skip
        mask = request.data.longest if attention.masked else 0  # one byte per pair of positions in a row
        passing = accelerator_backward_bytes(request, precision) + mask
    between = residual * facts.hidden_size
    layers, away = split_bytes(facts.layers, between, layer, offload, checkpointing=checkpointing)
    passing += rounding_bytes(request)[1] if request.train.precision == FP8 else 0
    activations = (tokens * (layers + passing + routed) + _piece_bytes(request, precision, tokens, offload)) * SLACK
    if "generate" in request.needs:
        positions = GENERATION_BATCHES * micro_batch_tokens
        sampling = positions * generation_bytes(request, precision, stream=stream)
        activations = max(activations, sampling + (graph_bytes(positions, facts.vocab_size) if graphs else 0))
    hardware = request.place.hardware
    logits = min(chunk_bytes_on(hardware.device, hardware.memory), 4 * tokens * facts.vocab_size)
    update = request.updates.update_bytes * trained  # after activations are freed
    fixed = _fixed(request, precision, offload)
    loading = loading_bytes(request, precision, away=offload.layers != DEVICE)
    snapshots = _snapshot_bytes(request)
    on_host = snapshots * request.snapshots.host
    lent = {"layers": layers_bytes(request, precision)} if offload.layers == HOST else {}
    if offload.roles in (HOST, SPREAD):  # with `spread`, at most
        lent["roles"] = role_layers_apart(request, offload, size)
    spilled = {"activations": int(tokens * away)} if offload.activations == HOST else {}
    return MemoryEstimate(
        {
            **fixed,
            "snapshots": snapshots * request.snapshots.device,
            "activations": int(activations),
            "logits": int(logits),
            "update": max(0, int(update - activations - logits)),
            "overhead": DEVICE_OVERHEAD,
        },
        host={
            "overhead": host_overhead(),
            "snapshots": on_host,
            "loading": max(0, loading - on_host),
            **_state_on_host(request),
            **lent,
            **spilled,
            **_earlier(request, host=True),
        },
        disk=_on_disk(request, precision, offload, int(tokens * away)),
    )


def _piece_bytes(request: PlanRequest, precision: str, tokens: int, offload: Offload) -> int:
    """Memory of feed-forward blocks computed in pieces: one piece, and pieces of the residual stream and its gradient
    before they are joined. Measured on rows of 65,536 tokens (docs/benchmarks/long-rows.md)."""
    if not offload.pieces:
        return 0
    joined = 2 * max(4, BYTES[precision]) * request.base.facts.hidden_size
    return tokens * joined + min(offload.pieces, tokens) * feed_forward_bytes(request, precision)


def _state_on_host(request: PlanRequest) -> dict[str, int]:
    """The optimizer's state, if it is in host memory."""
    on_host = "host_state" in request.updates.optimizer.capabilities
    return {"optimizer": optimizer_bytes(request)} if on_host else {}


def _earlier(request: PlanRequest, *, host: bool) -> dict[str, int]:
    """The gradients of a step's earlier calls, if there may be some, and they are in this memory.

    Args:
        host: in host memory apart from the device's.
    """
    taken = 4 * _differentiated(request) if request.several_calls else 0
    hardware = request.place.hardware
    away = hardware.device.startswith("cuda") and taken > EARLIER_SHARE * hardware.memory
    return {EARLIER: taken} if taken and away == host else {}


def _differentiated(request: PlanRequest) -> int:
    """Trained numbers whose gradients are there at the same time."""
    words, trained = request.updates.optimizer.capabilities, request.trains.parameters
    if "in_backward" in words:
        return 0
    return min(trained, _largest_block(request)) if "in_turn" in words else trained


def _trains_base(request: PlanRequest) -> bool:
    """Whether most of the base trains, with its norms and head."""
    return not request.trains.base_frozen and request.trains.parameters > request.base.model.parameters // 2


def _fixed(request: PlanRequest, precision: str, offload: Offload) -> dict[str, int]:
    """Memory that does not depend on micro-batches."""
    size, trained = BYTES[precision], request.trains.parameters
    facts = request.base.facts
    head_gradient = (4 + size) * facts.vocab_size * facts.hidden_size if _trains_base(request) else 0
    words = request.updates.optimizer.capabilities
    masters = 4 * trained if precision in ("bf16", "fp16") and "masterless" not in words else 0
    weights = resident_bytes(request.base, precision) + (trained * size if request.trains.base_frozen else 0)
    weights += request.trains.adapter.held_bytes(facts, precision)
    weights -= layers_apart(request, offload, resident_bytes(request.base, precision), _outside(request, precision))
    roles = {"roles": role_bytes(request, size, offload)} if request.role_parameters else {}
    experts = {"experts": dequantised_experts(request.base, precision)}
    return {
        **roles,
        **{name: taken for name, taken in experts.items() if taken},
        **({"fp8": rounding_bytes(request)[0]} if request.train.precision == FP8 else {}),
        "weights": int(weights + masters),
        "gradients": (4 * _differentiated(request) or largest_gradient(request)) + head_gradient,
        **_earlier(request, host=False),
        "optimizer": 0 if words & STATE_ELSEWHERE else optimizer_bytes(request),
    }


def dequantised_experts(base: BasePart, precision: str) -> int:
    """One layer's experts as plain numbers, which a quantised base makes while they compute."""
    if base.quantizer is None:
        return 0
    return BYTES[precision] * base.model.expert_weights // max(1, base.facts.layers)


def dequantised_weight(base: BasePart, precision: str, *, stream: bool) -> int:
    """The largest weight as plain numbers, which a quantised base makes for each product; in the stream decoder gate
    and up are one weight."""
    if base.quantizer is None and base.model.stored is None:
        return 0
    return BYTES[precision] * (2 if stream else 1) * base.facts.ffn_size * base.facts.hidden_size


def layers_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes of the base's decoder layers."""
    return max(0, resident_bytes(request.base, precision) - _outside(request, precision))


def _outside(request: PlanRequest, precision: str) -> int:
    """Bytes of the base outside decoder layers: embedding, head and last norm, which are not quantised."""
    facts = request.base.facts
    rows = facts.vocab_size * (1 if facts.tied else 2) + 1
    return min(resident_bytes(request.base, precision), rows * facts.hidden_size * BYTES[precision])


STATE_ELSEWHERE = frozenset({"host_state", "disk_state"})
"""Capabilities of optimizers whose state is not on the weights' device."""


def optimizer_bytes(request: PlanRequest) -> int:
    """The optimizer's state, on any device."""
    kept = request.updates.state_bytes + ("corrected" in request.updates.optimizer.capabilities)
    return int(kept * request.trains.parameters)


def largest_gradient(request: PlanRequest) -> int:
    """The gradient of one parameter, if each is dropped after use."""
    return 4 * largest_parameter(request)


def largest_parameter(request: PlanRequest) -> int:
    """Size of the largest trained parameter: the embedding, or a layer's largest matrix if the base is frozen."""
    facts = request.base.facts
    largest = max(facts.ffn_size, facts.hidden_size)
    return facts.hidden_size * (max(largest, facts.vocab_size) if _trains_base(request) else largest)


def _update_bytes(request: PlanRequest) -> int:
    """Temporary memory of updating the largest tensor, if tensors are updated one after the other."""
    return int(request.updates.tensor_bytes * min(largest_parameter(request), request.trains.parameters))


def _largest_block(request: PlanRequest) -> int:
    """Parameters of one block of an optimizer that trains blocks in turn: a decoder layer, or the embedding."""
    layer = sum(inputs * outputs for inputs, outputs in layer_matrices(request.base.facts)) // request.base.facts.layers
    return max(layer, largest_parameter(request))


def _snapshot_bytes(request: PlanRequest) -> int:
    """Bytes of a snapshot: parameters in fp32, optimizer state, copies of the policy, and the adapter's own tensors."""
    copies = sum(role.model is None for role in request.roles.values())
    own = (4 * (1 + copies) + request.updates.state_bytes) * request.trains.parameters
    return int(own) + request.trains.adapter.kept_bytes(request.base.facts, request.base.model.parameters)


def _on_host(
    request: PlanRequest, precision: str, micro_batch_tokens: int, offload: Offload, routed: int, *,
    checkpointing: bool, stream: bool, attention: HeldByAttention | None,
) -> MemoryEstimate:  # fmt: skip
    """`routed`: as for `_on_accelerator`."""
    from finetooth_kernels.contract import DEFAULT_CHUNK_BYTES

    facts = request.base.facts
    tokens = tokens_at_once(request, micro_batch_tokens, packed=stream, held=attention)
    full = _trains_base(request)
    scored = 0 if attention is None or attention.fused else score_bytes(request, precision)
    held = without_feed_forward(request) if offload.pieces else request
    residual = residual_bytes(precision, stream=stream)
    layer = by_layer(
        held, precision,
        lambda alike: scored
        + (stream_layer_bytes(alike, precision) if stream else layer_bytes(alike, precision, full=full)),
        full=full, residual=None if stream else residual,
    )  # fmt: skip
    between = residual * facts.hidden_size
    layers, away = split_bytes(facts.layers, between, layer, offload, checkpointing=checkpointing)
    # the stream decoder allocates saved tensors in blocks; with offloading, tensors have separate pages
    fragments = 1.0 if stream or offload.any else FRAGMENTATION[precision]
    activations = tokens * (layers + routed) * fragments
    # tensors of an adapter's own modules come from malloc, with any decoder
    own = own_bytes(request, precision, stream=stream)
    activations += (
        tokens
        * split_bytes(facts.layers, 0, (own, own), offload, checkpointing=checkpointing)[0]
        * (1.0 if offload.any else FRAGMENTATION[precision])
    )
    if stream:
        activations += tokens * backward_bytes(held, precision)
    activations += _piece_bytes(request, precision, tokens, offload)
    if "generate" in request.needs:
        sampling = GENERATION_BATCHES * micro_batch_tokens * generation_bytes(request, precision, stream=stream)
        # plain weights have a packed copy
        packed = resident_bytes(request.base, precision) if stream and request.base.stored is None else 0
        activations = max(activations, sampling + packed)
    snapshots = request.snapshots.device + max(0, request.snapshots.host - 1)  # a copied layer is on the device
    fixed = _fixed(request, precision, offload)
    if numbers := dequantised_weight(request.base, precision, stream=stream):
        fixed["dequantised"] = numbers
    whole = resident_bytes(request.base, precision)
    later = sum(fixed.values()) - fixed["weights"] + snapshots * _snapshot_bytes(request) + int(activations)
    beginning = request.trains.adapter.beginning_bytes(facts) - later
    # a file in the run's precision is mapped and read layer by layer; another is converted as a whole first
    loading = (
        whole - sum(fixed.values()) - int(activations)
        if offload.layers != DEVICE and not stays_in_files(request.base, precision)
        else 0
    )
    limit = min(DEFAULT_CHUNK_BYTES, 4 * _scored(request, tokens) * facts.vocab_size)
    if request.base.model.loading_bytes is not None:  # everything else comes after that
        later += fixed["weights"] + limit
        loading = max(loading, request.base.model.loading_bytes + FOLDING - later)
    update = _update_bytes(request) - int(activations) - limit  # freed by then
    return MemoryEstimate(
        {
            **fixed,
            **({"loading": loading} if loading > 0 else {}),
            **({"beginning": beginning} if beginning > 0 else {}),
            **({"update": update} if update > 0 else {}),
            **_state_on_host(request),
            "snapshots": snapshots * _snapshot_bytes(request),
            "activations": int(activations),
            "logits": limit,
            "overhead": host_overhead(),
        },
        disk=_on_disk(request, precision, offload, int(tokens * away)),
    )


def _scored(request: PlanRequest, tokens: int) -> int:
    """Positions of a micro-batch in the head. Training needs those with trained targets; outputs for methods,
    evaluators and other models may need every position."""
    alone = not request.needs and not request.roles
    return math.ceil(tokens * request.data.trained_share) if alone else tokens


def _on_disk(request: PlanRequest, precision: str, offload: Offload, activations: int) -> dict[str, int]:
    """Bytes in temporary files; layers whose own files have the run's precision stay in those."""
    spilled = {"activations": activations} if offload.activations == DISK else {}
    copied = offload.layers == DISK and not stays_in_files(request.base, precision)
    roles = {"roles": role_layers_apart(request, offload, BYTES[precision])} if offload.roles == DISK else {}
    return {**spilled, **({"layers": layers_bytes(request, precision)} if copied else {}), **roles}


def stays_in_files(base: BasePart, precision: str) -> bool:
    """Whether the base's weights can stay in their files, which have the run's precision."""
    model = base.model
    return (
        base.stored is None
        and abs(model.weight_bytes - model.parameters * BYTES[precision]) <= model.weight_bytes // 100
    )


def tokens_at_once(
    request: PlanRequest, micro_batch_tokens: int, *, packed: bool, held: HeldByAttention | None = None
) -> int:
    """Positions of the largest micro-batch.

    Packed, a micro-batch has the tokens of its rows, with common beginnings once: at most the budget, and hardly more
    than a step whose rows are three standard deviations above the average. Padded, it may fill the budget; if lengths
    are known, as much of it as the run's steps do.

    Args:
        held: how rows are filled; None: unknown, so the whole budget.
    """
    train, longest = request.train, request.data.longest
    data = math.ceil(train.batch_size * request.data.of_a_row)
    if not packed or not request.data.mean_length:
        most = max(longest, min(micro_batch_tokens, data * longest))
        if packed or held is None or not request.data.lengths:
            return most
        filled = largest_positions(request.data.lengths, data, micro_batch_tokens, held.filling, steps=train.max_steps)
        return min(most, max(longest, filled))
    step = data * request.data.mean_length + 3 * math.sqrt(data) * request.data.length_deviation
    step = min(step, data * longest)
    parts = max(1, math.ceil(step / micro_batch_tokens))  # micro-batches of a step get equal shares
    again = max(0.0, data / parts - 1) * _computed_once(request, data // parts)
    return max(longest, math.ceil(step / parts - again))


def _computed_once(request: PlanRequest, rows: int) -> int:
    """Positions of the beginning common to all examples, which the stream decoder computes once per micro-batch."""
    data = request.data
    rows_differ = data.segmented or request.train.embedding_noise or "draws" in request.trains.adapter.capabilities
    lengths = [round(data.mean_length)] * max(1, rows)
    shared = worth_sharing(data.beginning, lengths, least_saved(request.place.hardware.device))
    return data.beginning if shared and not rows_differ else 0
