"""The torch backend's decisions before any weight is loaded, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from finetooth_hooks import Context, Decision, MemoryEstimate, PlanError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import (
    BackendPlan,
    HardwareFacts,
    ModelFacts,
    PickedKernel,
    PlanRequest,
    SnapshotsPart,
)
from finetooth_modelfiles.classifiers import class_name
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.precision_choice import choose_precision, stored_precision
from finetooth_toolbox.text.measures import size

from finetooth_torch.planning.attention import AUTO, AttentionChoice, choose_attention
from finetooth_torch.planning.compilation import REGIONAL, Compile, check_compile, choose_compile
from finetooth_torch.planning.experts import experts_form
from finetooth_torch.planning.fp8 import FP8, with_cost
from finetooth_torch.planning.graphs import choose_graphs
from finetooth_torch.planning.layer_memory import HeldByAttention
from finetooth_torch.planning.memory import estimate
from finetooth_torch.planning.offload import ON_DEVICE, Offload, check_offload, in_one_pool, in_parts, shares_memory
from finetooth_torch.planning.offload import decisions as offloaded
from finetooth_torch.planning.portions import choose_portions
from finetooth_torch.planning.repeatable import has_fused_sdpa, with_amd_kernels
from finetooth_torch.planning.routers import NO_ROUTERS, RouterCoefficients
from finetooth_torch.planning.row_sharing import (
    check_sampled,
    likely_steps,
    obstacle,
    padding,
    rescanned,
    scaled_by_length,
)
from finetooth_torch.planning.sharding import check_sharding, check_slicing, divided, of_one_rank
from finetooth_torch.planning.skipped import without_skipped
from finetooth_torch.planning.step_cost import step_cost
from finetooth_torch.planning.updates import check_updates

RECIPE = "the recipe says so"
STREAM = "stream"
UNTIMED = "no GPU has timed its attention with a window, cap or sinks"


def decide(
    request: PlanRequest, attention: Pick, decoder: str = "auto", packing: bool | None = None,
    context: Context | None = None, offload: Offload = ON_DEVICE, routers: RouterCoefficients = NO_ROUTERS, *,
    share_base: bool = False, compiling: Compile = "auto", anomalies: bool = False,
    graphs: Literal["auto"] | bool = "auto",
) -> BackendPlan:  # fmt: skip
    """Decide precision, micro-batch and checkpointing, and estimate the memory.

    Args:
        attention, decoder, packing: see `TorchOptions`.
        context: has the entries that may compute attention.
        offload: what is kept off the device.
        routers: whether a mixture's routers have losses.
        share_base, compiling, graphs: see `TorchOptions`.
        anomalies: its `detect_anomaly`.

    Raises:
        PlanError: the hardware or the optimizer does not support a setting.
    """
    kind = "none" if request.trains.head is None else request.trains.head.exported_as
    if kind != "none":
        class_name(request.base.model.model_type, kind)  # refuses a model that cannot be exported
    precision = choose_precision(request.train.precision, request.place.hardware)
    held_in, fp8 = stored_precision(str(precision.value)), precision.value == FP8
    precision = with_cost(precision, request) if fp8 else precision
    request = replace(request, base=without_skipped(request.base))
    check_updates(request, held_in)
    check_sampled(request)
    check_offload(request, offload)
    check_sharding(request, held_in, offload, share_base=share_base)
    base = request.base
    windows = _windows_named(request, held_in)
    obstacle_of = partial(
        stream_obstacle, hardware=request.place.hardware, attention=attention, packing=packing, offload=offload,
        sharded=in_parts(request.place), routed=bool(routers), windows=windows,
    )  # fmt: skip
    chosen = _decoder(request, held_in, decoder, obstacle_of, windows=windows)
    stream = chosen.value == STREAM
    replayed = choose_graphs(graphs, request.place.hardware, chosen, samples="generate" in request.needs)
    attending = None if stream else _attention(request, attention, held_in, context, compiled=compiling == REGIONAL)
    check_slicing(request, attending)
    excluded = {
        "backend.share_base": share_base, "backend.detect_anomaly": anomalies,
        "backend.router_aux_loss_coef, router_z_loss_coef": bool(routers), "train.precision=fp8": fp8,
    }  # fmt: skip
    takes = partial(
        _takes, precision=held_in, stream=stream, offload=offload, routers=routers,
        graphs=replayed is not None and replayed.value is True,
    )  # fmt: skip
    leaner = partial(_leaner, request, attention, held_in, context)
    attending, of_attention, (micro_batch, checkpointing) = _fitted(request, attending, packing, takes, leaner)
    takes = partial(takes, attention=of_attention)
    layers = () if attending is None else with_amd_kernels(attending.decisions, request.place.hardware)
    train = replace(
        request.train, precision=str(precision.value), micro_batch_tokens=int(micro_batch.value),
        gradient_checkpointing=bool(checkpointing.value),
    )  # fmt: skip
    memory = takes(request, int(micro_batch.value), checkpointing=bool(checkpointing.value))
    shared, filling = _packing(request, attending, packing, int(micro_batch.value))
    kernels = _kernels(request, held_in, stream=stream, fp8=fp8)
    decisions = (precision, micro_batch, checkpointing, chosen, *layers, shared, *divided(request))
    decisions = (*decisions, *offloaded(request, offload), *_compiled(request, compiling, offload, attending, excluded))
    decisions = (*decisions, *experts_form(base.facts, kernels), *(() if replayed is None else (replayed,)))
    of_steps = _no_padding if stream else partial(padding, budget=int(micro_batch.value), filling=filling)
    fused = attending is None or attending.fused
    cost = step_cost(
        request, replace(train, precision=held_in), filling, stream=stream, fused=fused, kernels=kernels,
        routed=bool(routers),
    )  # fmt: skip
    return BackendPlan(train, decisions, memory, of_steps, cost)


def _fitted(
    request: PlanRequest, attending: AttentionChoice | None, packing: bool | None, takes: Callable[..., MemoryEstimate],
    leaner: Callable[[AttentionChoice], AttentionChoice | None],
) -> tuple[AttentionChoice | None, HeldByAttention, tuple[Decision, Decision]]:  # fmt: skip
    """The attention, what it keeps, and the portions with it: other attention that stores no scores, if those of the
    first choice take too much.

    Args:
        attending: the first choice; None: the stream decoder computes the layers.
        leaner: finds the other.
    """
    # on a CPU the count of saved activations decides nothing
    deciding = replace(request, snapshots=SnapshotsPart()) if request.place.hardware.device == "cpu" else request
    held = HeldByAttention() if attending is None else _attention_memory(request, attending, packing)
    needs = partial(takes, deciding, attention=held)
    portions = choose_portions(request, needs)
    other = None if attending is None or held.fused else leaner(attending)
    if attending is None or other is None:
        return attending, held, portions
    less = _attention_memory(request, other, packing)
    needs_less = partial(takes, deciding, attention=less)
    portions_of_other = choose_portions(request, needs_less)
    has = request.place.hardware.memory
    peak, low = _peak(needs, portions), _peak(needs_less, portions_of_other)
    if peak > has and low < peak:
        why = f"would take {size(peak)} of {size(has)}, this takes {size(low)}"
    elif portions_of_other[0].value > portions[0].value:
        why = f"has room for {portions[0].value} tokens at once, this for {portions_of_other[0].value}"
    elif portions[1].value and not portions_of_other[1].value:
        why = "has room only if activations are recomputed"
    else:
        return attending, held, portions
    found = replace(other, decisions=_because(other, f"{attending.names} {why}"))
    return found, less, portions_of_other


def _peak(needs: Callable[..., MemoryEstimate], portions: tuple[Decision, Decision]) -> int:
    return needs(int(portions[0].value), checkpointing=portions[1].value is True).total


def _leaner(
    request: PlanRequest, pick: Pick, precision: str, context: Context | None, before: AttentionChoice
) -> AttentionChoice | None:
    """Attention that stores no scores, for what the recipe leaves open; None if there is none, or if the run does more
    than to train whole rows on one device."""
    hardware = request.place.hardware
    if hardware.device == "cpu" or request.place.sharding is not None or {"generate", "trees"} & request.needs:
        return None
    base = request.base
    try:
        found = choose_attention(
            context, pick, base.facts, base.model.config, hardware, precision, of_transformers=True, instead_of=before
        )
    except PlanError:
        return None
    shares = obstacle(base.model.config, found) == obstacle(base.model.config, before)
    return found if found.fused and shares else None


def _because(attention: AttentionChoice, reason: str) -> tuple[Decision, ...]:
    """The decisions on it, with the reason for those that the recipe leaves open."""
    return tuple(one if one.reason == RECIPE else replace(one, reason=reason) for one in attention.decisions)


def _compiled(
    request: PlanRequest, wanted: Compile, offload: Offload, attention: AttentionChoice | None,
    excluded: Mapping[str, bool],
) -> tuple[Decision, ...]:  # fmt: skip
    """Whether torch compiles layers; see `check_compile`.

    Args:
        attention: of the model's own code; None: the stream decoder computes the layers.

    Raises:
        PlanError: the recipe says so, and it cannot.
    """
    stream = attention is None
    if wanted == REGIONAL:
        functions = attention.names if attention is not None and not attention.implementation else ""
        check_compile(request, offload, stream=stream, functions=functions, excluded=excluded)
    decision = choose_compile(wanted, request.place.hardware.device, stream=stream)
    return () if decision is None else (decision,)


def _takes(
    request: PlanRequest, tokens: int, *, precision: str, stream: bool, attention: HeldByAttention, offload: Offload,
    routers: RouterCoefficients, graphs: bool, checkpointing: bool,
) -> MemoryEstimate:  # fmt: skip
    whole = partial(
        estimate, request, precision, tokens, checkpointing=checkpointing, stream=stream, attention=attention,
        offload=offload, routers=routers, graphs=graphs,
    )  # fmt: skip
    memory = of_one_rank(whole, request, precision, tokens, checkpointing=checkpointing)
    return in_one_pool(memory) if shares_memory(request.place) else memory


def _models(request: PlanRequest) -> tuple[ModelFacts, ...]:
    return request.base.facts, *(role.facts for role in request.roles.values() if role.facts is not None)


def _windows_named(request: PlanRequest, precision: str) -> bool:
    """Whether the recipe names who computes attention with a window, a cap or sinks, looked up if a model has them.

    Raises:
        PlanError: a provider that the recipe picks cannot serve.
    """
    from finetooth_torch.compute import windows_request

    if request.kernels is None or not any(map(_looks_otherwise, _models(request))):
        return False
    return bool(request.kernels(windows_request(precision)))


def _decoder(
    request: PlanRequest, precision: str, wanted: str, obstacle_of: Callable[..., str], *, windows: bool
) -> Decision:
    """Whose code computes the layers.

    Args:
        windows: a provider of windowed attention is named.
    """
    base, hardware = request.base, request.place.hardware
    brought = _decoder_brought(request, precision, wanted, obstacle_of)
    chosen = choose_decoder(obstacle_of(base.facts, config=base.model.config), hardware, wanted, brought=brought)
    untimed = chosen.value == STREAM and windows and hardware.device != "cpu"
    return replace(chosen, reason=f"{chosen.reason}; {UNTIMED}") if untimed else chosen


def _decoder_brought(request: PlanRequest, precision: str, wanted: str, obstacle_of: Callable[..., str]) -> bool:
    """Whether there is a provider of the stream decoder, looked up if a model of the run could use it.

    Args:
        obstacle_of: why no stream decoder can compute a model's layers.

    Raises:
        PlanError: a provider that the recipe picks cannot serve.
    """
    from finetooth_torch.compute import DECODER, decoder_request

    if request.kernels is None or wanted == "transformers" or all(map(obstacle_of, _models(request))):
        return False
    return DECODER in request.kernels(decoder_request(precision))


def _kernels(request: PlanRequest, precision: str, *, stream: bool, fp8: bool) -> Mapping[str, PickedKernel]:
    """Who computes each operation; nothing where nobody picks, and torch computes all.

    Raises:
        PlanError: a provider that the recipe picks cannot serve.
    """
    from finetooth_torch.compute import check_products, compute_request

    layers = request.base.facts.per_layer
    experts = request.base.model.expert_weights > 0 or any(of.experts is not None for of in layers)
    linear = any(of.mixer == "linear" for of in layers)
    windows = any(map(_looks_otherwise, _models(request)))
    wanted = compute_request(precision, stream=stream, fp8=fp8, experts=experts, gated_norm=linear, windows=windows)
    picked = {} if request.kernels is None else request.kernels(wanted)
    check_products(picked)
    return picked


def stream_obstacle(
    facts: ModelFacts, hardware: HardwareFacts, attention: Pick, packing: bool | None = None, *,
    config: Mapping[str, Any] = MappingProxyType({}), offload: Offload = ON_DEVICE, sharded: bool = False,
    routed: bool = False, windows: bool = False,
) -> str:  # fmt: skip
    """Why no provider's stream decoder can compute a model's layers; empty if one can.

    Args:
        config: of the model.
        offload: what is kept off the device.
        sharded: ranks hold parts of the model or of rows.
        routed: routers have losses.
        windows: the recipe names who computes attention with a window, a cap or sinks.
    """
    looks_otherwise = hardware.device != "cpu" and not windows and _looks_otherwise(facts)
    scaling, _ = scaled_by_length(config)
    reasons = (
        (facts.block is None and scaling, f"its rotary angles ({scaling}) change with the length of a row"),
        (facts.block is None, "its layers have no description: its family gives none, or its config asks for more"),
        (offload.any, offload.reason),
        (sharded, "the strategy divides what the model's own code computes"),
        (routed, "losses of routers are read from the model's own code"),
        (attention != AUTO, f"backend.attention={attention} is for the model's own code"),
        (
            looks_otherwise,
            "flash attention over segments has no window, cap or sinks, only kernels.windowed_attention=triton",
        ),
        (packing is False, "backend.packing=false asks for padding, and it has none"),
    )
    return next((reason for holds, reason in reasons if holds), "")


def choose_decoder(obstacle: str, hardware: HardwareFacts, wanted: str, *, brought: bool) -> Decision:
    """How decoder layers are computed; see `TorchOptions.decoder`.

    Args:
        obstacle: see `stream_obstacle`.
        brought: a provider of the operation `stream_decoder` was picked.

    Raises:
        PlanError: the recipe names the stream decoder, and it cannot be used.
    """
    setting, reason = "backend.decoder", obstacle
    if not reason and not brought:
        brings = (
            "finetooth-native brings one for CPUs and, in half precision, NVIDIA GPUs; native_layers was never tried"
        )
        reason = f"no plugin brings one that serves {hardware.label} here; {brings}"
    if wanted == STREAM and reason:
        raise PlanError(f"{setting}={STREAM}: {reason}", action=f"set {setting} to auto or transformers")
    if wanted == "transformers":
        return Decision(setting, wanted, RECIPE)
    if reason:
        return Decision(setting, "transformers", reason)
    better = "no padding, linear layers of the same input as one product, common beginnings once"
    return Decision(setting, STREAM, RECIPE if wanted == STREAM else better)


def _looks_otherwise(facts: ModelFacts) -> bool:
    """Whether some layer's attention is not a plain causal softmax of scaled products."""
    attention = facts.attention
    return attention.softcap is not None or bool(attention.sinks) or any(layer.window for layer in facts.per_layer)


def _packing(
    request: PlanRequest, attention: AttentionChoice | None, wanted: bool | None, micro_batch: int
) -> tuple[Decision, Filling | None]:
    """Whether examples share rows, and how.

    Args:
        attention: of the model's own code; None: the stream decoder computes the layers.

    Raises:
        PlanError: the model cannot keep examples of a shared row apart.
    """
    setting = "backend.packing"
    steps = likely_steps(request.data.lengths, request.train.batch_size) if request.data.lengths else []
    before = padding(steps, micro_batch, None)
    if attention is None:
        return Decision(setting, True, f"the stream decoder has no padding{_instead(steps, before)}"), None
    why = obstacle(request.base.model.config, attention)
    if why and wanted:
        raise PlanError(f"{setting}=true: {why}", action=f"set {setting} to auto or false")
    if why and request.data.segmented:
        raise PlanError(
            f"method: its sequences hold several documents, which cannot be kept apart: {why}",
            action="set method.isolate_documents: false",
        )
    if wanted is False or why:
        return Decision(setting, False, why or RECIPE), None
    filling = attention.filling
    after = padding(steps, micro_batch, filling)
    reason = f"about {after:.0%} padding{_instead(steps, before)}" if after < before else "where it saves padding"
    if any(layer.state or layer.mixer == "convolution" for layer in request.base.facts.per_layer):
        share = rescanned(request.data.lengths) if steps else 0.0
        reason += f"; states restart with each sequence, which costs their scans up to {share:.0%} more positions"
    return Decision(setting, True, RECIPE if wanted and not steps else reason), filling


def _attention_memory(request: PlanRequest, attention: AttentionChoice, wanted: bool | None) -> HeldByAttention:
    """What the attention of the model's own code keeps for the backward pass."""
    shares = wanted is not False and not obstacle(request.base.model.config, attention)
    filling = attention.filling if shares else None
    fused = attention.fused and ("sdpa" not in attention.names or has_fused_sdpa(request.place.hardware))
    return HeldByAttention(masked=filling == "rows", fused=fused, filling=filling)


def _instead(steps: Sequence[Sequence[int]], before: float) -> str:
    return f" instead of about {before:.0%}" if steps and before >= 0.005 else ""


def _no_padding(steps: Sequence[Sequence[int]]) -> float:
    del steps
    return 0.0


def _attention(
    request: PlanRequest, pick: Pick, precision: str, context: Context | None, *, compiled: bool
) -> AttentionChoice:
    base, hardware = request.base, request.place.hardware
    return choose_attention(context, pick, base.facts, base.model.config, hardware, precision, of_transformers=compiled)
