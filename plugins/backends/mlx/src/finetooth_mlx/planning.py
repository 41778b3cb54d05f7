"""The MLX backend's decisions before any weight is loaded, with reasons, and the memory that a run takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from finetooth_hooks import Decision, MemoryEstimate, PlanError
from finetooth_hooks.protocols import BackendPlan, ModelFacts, PlanRequest, Quantizer
from finetooth_modelfiles.classifiers import class_name
from finetooth_modelfiles.sizes import role_quantizer, shapes
from finetooth_toolbox.precision_choice import choose_precision

RECIPE = "the recipe says so"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MOST, FEWEST = 8192, 256
"""Tokens per micro-batch: more make products no faster; fewer leave the device idle."""
CHUNK = 1 << 26
"""Bytes of the logits, in fp32, that are held at once."""
MOST_POSITIONS = 512
"""The most positions whose logits are held at once: a product with the head gains nothing from more rows."""
KV_CACHE = {"plain": 0, "int8": 8, "int4": 4}
"""Bits per number in the KV cache, by name; 0 is the model's precision."""
CACHE_GROUPS = (64, 32)
"""Numbers of a head that share a scale and an offset in a quantised cache; the first that fits."""
GENERATION_BATCHES = 4
"""Size of a sampling batch, in micro-batches."""
MLX_OVERHEAD = 256 << 20
"""Bytes of the library, of its kernels and of freed memory that its allocator keeps."""


def decide(request: PlanRequest, kv_cache: str = "plain") -> BackendPlan:
    """Decide precision, micro-batch and checkpointing.

    Raises:
        PlanError: the hardware, the optimizer or the model does not support a setting.
    """
    if KV_CACHE[kv_cache] and request.base.facts.head_dim % CACHE_GROUPS[-1]:
        raise PlanError(
            f"backend.kv_cache={kv_cache}: heads of this model have {request.base.facts.head_dim} numbers, and MLX "
            f"stores groups of {CACHE_GROUPS[-1]} in fewer bits",
            action="leave backend.kv_cache out",
        )
    if request.trains.head is not None and request.trains.head.exported_as != "none":
        class_name(request.base.model.model_type, request.trains.head.exported_as)  # refuses if it has none
    precision = choose_precision(request.train.precision, request.place.hardware)
    tokens, checkpointing = _portions(request, str(precision.value), kv_cache)
    train = replace(
        request.train,
        precision=str(precision.value),
        micro_batch_tokens=int(tokens.value),
        gradient_checkpointing=bool(checkpointing.value),
    )
    way, size = bool(checkpointing.value), int(tokens.value)
    memory = estimate(request, str(precision.value), size, checkpointing=way, kv_cache=kv_cache)
    return BackendPlan(train, (precision, tokens, checkpointing), memory)


def _portions(request: PlanRequest, precision: str, kv_cache: str) -> tuple[Decision, Decision]:
    """The largest micro-batch that fits, without recomputation if activations fit."""
    names = "train.micro_batch_tokens", "train.gradient_checkpointing"
    tokens, recomputes, longest = request.train.micro_batch_tokens, request.train.gradient_checkpointing, request.data
    if tokens is not None and tokens < max(1, longest.longest if longest.mean_length else 1):
        least = tokens + 1 - longest.unbounded
        raise PlanError(
            f"{names[0]}={tokens}: the longest row has {longest.longest} tokens, which do not fit",
            action=f"set it to auto or at least {longest.longest}"
            + (f", or lower {longest.bounded_by} below {least}" if least > 1 else ""),
        )
    most = 4096 if request.place.hardware.device == "cpu" else MOST
    halves = [size for size in (most >> i for i in range(16)) if size >= FEWEST]
    sizes = [tokens] if tokens is not None else list(dict.fromkeys(max(size, longest.longest) for size in halves))
    ways = [recomputes] if recomputes is not None else [False, True]
    takes = partial(estimate, request, precision, kv_cache=kv_cache)
    tried = [(size, way) for way in ways for size in sizes]
    has = request.place.hardware.memory
    fits = [(size, way) for size, way in tried if not has or takes(size, checkpointing=way).total <= has]
    size, way = fits[0] if fits else tried[-1]
    why = "the largest that fits" if fits else "the least there is, and it does not fit"
    fit = "activations fit" if not way else "activations would not fit"
    return (
        Decision(names[0], size, RECIPE if tokens is not None else why),
        Decision(names[1], way, RECIPE if recomputes is not None else fit),
    )


def estimate(
    request: PlanRequest, precision: str, tokens: int, *, checkpointing: bool, kv_cache: str = "plain"
) -> MemoryEstimate:
    """Peak memory in bytes, by part. A Mac's host and device share one memory.

    Args:
        tokens: per micro-batch.
        kv_cache: see `KV_CACHE`.
    """
    facts, model, trained = request.base.facts, request.base.model, request.trains.parameters
    each = BYTES[precision]
    weights = model.parameters * each if model.resident_bytes is None else model.resident_bytes
    if (quantizer := request.base.quantizer) is not None:
        weights -= _saved(quantizer, facts, each)
    if not request.trains.base_frozen:
        weights += trained * (4 if each == 2 else 0)  # master weights in fp32, in addition to the model's
    else:
        weights += 4 * trained
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    width = 6 * facts.hidden_size + 3 * queries + 4 * keys + 5 * facts.ffn_size
    rows = min(tokens, max(request.data.longest, 1))
    scores = 2 * facts.heads * rows * 4  # the backward pass recomputes attention weights, for all heads of a layer
    in_layer = tokens * (width * each + scores)
    saved = facts.layers * tokens * (facts.hidden_size * each if checkpointing else width * each)
    activations = saved + in_layer
    if "generate" in request.needs:
        bits = KV_CACHE[kv_cache]
        number = each if not bits else bits / 8 + 4 / CACHE_GROUPS[0]
        of_token = 2 * facts.layers * keys * number + (6 * facts.ffn_size + 8 * facts.hidden_size) * each
        activations = max(activations, int(GENERATION_BATCHES * tokens * of_token))
    parts = {
        "weights": weights,
        "gradients": 2 * 4 * trained,  # accumulated ones, and those of a micro-batch
        "optimizer": int(request.updates.state_bytes * trained),
        "activations": activations,
        "logits": min(3 * CHUNK, 3 * 4 * min(tokens, MOST_POSITIONS) * facts.vocab_size),
        "overhead": MLX_OVERHEAD,
    }
    if request.several_calls:
        parts["earlier_gradients"] = 4 * trained
    if request.role_parameters:
        parts["roles"] = _role_bytes(request, each)
    if request.snapshots.device + request.snapshots.host:
        snapshot = int((4 + request.updates.state_bytes) * trained)
        parts["snapshots"] = snapshot * (request.snapshots.device + request.snapshots.host)
    return MemoryEstimate(parts)


def _saved(quantizer: Quantizer, facts: ModelFacts, each: int) -> int:
    """Bytes that a quantizer saves of the linear weights of a model."""
    linear = {path: size for path, size in shapes(facts).items() if quantizer.takes(path, (size[1], size[0]))}
    count = sum(inputs * outputs for inputs, outputs in linear.values())
    return int(count * (each - quantizer.stored.bytes_per_weight))


def _role_bytes(request: PlanRequest, each: int) -> int:
    """Bytes of models and copies for roles: each model counts once, and the base does not count again.

    Args:
        each: bytes per number.
    """
    base, frozen = request.base.model.reference, request.trains.base_frozen
    held = {base} if frozen or each == 4 else set()  # if it trains, its master weights are loaded in fp32
    taken = sum(model.parameters * each for model in request.opened)
    for role in request.roles.values():
        if role.model is None:
            taken += 4 * request.trains.parameters
        elif role.model.reference not in held:
            held.add(role.model.reference)
            whole = role.model.resident_bytes
            taken += role.model.parameters * each if whole is None else whole
            quantizer = role_quantizer(request.base, role)
            if quantizer is not None and role.facts is not None:
                taken -= _saved(quantizer, role.facts, each)
    return taken
