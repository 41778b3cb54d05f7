"""What the torch backend decides before any weight is loaded, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from finetooth_hooks import Context, Decision, PlanError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import BackendPlan, HardwareFacts, ModelFacts, PickedKernel, PlanRequest, Stored
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.torch.classifiers import has_classifier, no_classifier

from finetooth_torch.planning.attention import AUTO, AttentionChoice, choose_attention
from finetooth_torch.planning.memory import estimate
from finetooth_torch.planning.row_sharing import likely_steps, obstacle, padding
from finetooth_torch.planning.step_cost import step_cost

RECIPE = "the recipe says so"
STREAM = "stream"
CPU_MICRO_BATCH = 4096
ACCELERATOR_MICRO_BATCH = 16384


def decide(
    request: PlanRequest, attention: Pick, decoder: str = "auto", packing: bool | None = None,
    context: Context | None = None,
) -> BackendPlan:  # fmt: skip
    """Decide precision, micro-batch and checkpointing, and estimate the memory.

    Args:
        attention, decoder, packing: see `TorchOptions`.
        context: has the entries that may compute attention.

    Raises:
        PlanError: a setting asks for what the hardware or the optimizer cannot do.
    """
    if request.trains.head is not None and not has_classifier(
        request.base.model.model_type, request.trains.head.exported_as
    ):
        raise no_classifier(request.base.model.model_type, request.trains.head.exported_as)
    precision = _precision(request.train.precision, request.place.hardware)
    micro_batch = _micro_batch(request)
    base = request.base
    chosen = choose_decoder(base.facts, request.place.hardware, attention, decoder, packing, stored=base.stored)
    stream = chosen.value == STREAM
    attending = None if stream else _attention(request, attention, str(precision.value), context)
    layers = () if attending is None else attending.decisions
    checkpointing = _checkpointing(request, str(precision.value), int(micro_batch.value), stream=stream)
    train = replace(
        request.train,
        precision=str(precision.value),
        micro_batch_tokens=int(micro_batch.value),
        gradient_checkpointing=bool(checkpointing.value),
    )
    memory = estimate(
        request,
        str(precision.value),
        int(micro_batch.value),
        checkpointing=train.gradient_checkpointing is True,
        stream=stream,
    )
    shared, filling = _packing(request, attending, packing, int(micro_batch.value))
    kernels = _kernels(request, str(precision.value), stream=stream)
    decisions = (precision, micro_batch, checkpointing, chosen, *layers, shared)
    of_steps = _no_padding if stream else partial(padding, budget=int(micro_batch.value), filling=filling)
    fused = attending is None or attending.fused
    cost = step_cost(request, train, filling, stream=stream, fused=fused, kernels=kernels)
    return BackendPlan(train, decisions, memory, of_steps, cost)


def _precision(asked: str | None, hardware: HardwareFacts) -> Decision:
    setting = "train.precision"
    if asked is None:
        best = hardware.precisions[0]
        reason = f"computed natively by {hardware.label}"
        if best != "bf16":
            reason += ", and bf16 not" if "bf16" not in hardware.precisions else ""
        return Decision(setting, best, reason)
    if asked in hardware.precisions:
        return Decision(setting, asked, RECIPE)
    if asked in hardware.slow_precisions:
        return Decision(setting, asked, f"{RECIPE}; works on {hardware.label}, but slower than fp32")
    raise PlanError(
        f"train.precision={asked}: not possible on {hardware.label}",
        action=f"set train.precision to auto or {' or '.join(hardware.precisions)}",
    )


def _micro_batch(request: PlanRequest) -> Decision:
    setting, asked = "train.micro_batch_tokens", request.train.micro_batch_tokens
    if asked is not None:
        if asked < 1:
            raise PlanError(f"{setting}={asked}: it holds no token", action="set it to auto or a positive number")
        reason = RECIPE
        if request.data.mean_length and asked < request.data.longest:
            row = f"row {request.data.longest_id}" if request.data.longest_id else "the longest row"
            raise PlanError(
                f"{setting}={asked}: {row} has {request.data.longest} tokens, which do not fit",
                action=f"set it to auto or at least {request.data.longest}, "
                f"or lower train.max_length below {asked + 1}",
            )
    else:
        asked = CPU_MICRO_BATCH if request.place.hardware.device == "cpu" else ACCELERATOR_MICRO_BATCH
        reason = "enough rows to keep the GEMMs busy, little memory"
        if asked < request.data.longest:
            asked, reason = request.data.longest, "as much as the longest row"
    if not request.updates.accumulation:
        whole = request.train.batch_size * max(request.data.longest, 1)
        if request.train.micro_batch_tokens is not None and asked < whole:
            raise PlanError(
                f"{setting}={asked} cuts a step of up to {whole} tokens, and optimizer {request.updates.name} cannot "
                "accumulate gradients",
                action=f"set {setting} to auto, or choose another optimizer",
            )
        asked, reason = max(asked, whole), f"a whole step: optimizer {request.updates.name} cannot accumulate gradients"
    return Decision(setting, asked, reason)


def _checkpointing(request: PlanRequest, precision: str, micro_batch: int, *, stream: bool) -> Decision:
    setting, asked = "train.gradient_checkpointing", request.train.gradient_checkpointing
    if asked and not request.updates.checkpointing:
        raise PlanError(
            f"{setting}=true: optimizer {request.updates.name} does not work with it",
            action=f"set {setting} to false, or choose another optimizer",
        )
    if asked is not None:
        return Decision(setting, asked, RECIPE)
    needed = estimate(request, precision, micro_batch, checkpointing=False, stream=stream).total
    has = request.place.hardware.memory
    figures = f"{needed / 2**30:.1f} of {has / 2**30:.1f} GiB"
    if needed <= has:
        return Decision(setting, False, f"activations fit: {figures}")
    if not request.updates.checkpointing:
        return Decision(setting, False, f"optimizer {request.updates.name} does not work with it ({figures} needed)")
    return Decision(setting, True, f"without it the run would take {figures}")


def _kernels(request: PlanRequest, precision: str, *, stream: bool) -> Mapping[str, PickedKernel]:
    """Who computes each operation; nothing where nobody picks, and torch computes all.

    Raises:
        PlanError: a provider that the recipe picks cannot serve.
    """
    from finetooth_torch.compute import wanted

    return {} if request.kernels is None else request.kernels(wanted(precision, stream=stream))


def choose_decoder(
    facts: ModelFacts,
    hardware: HardwareFacts,
    attention: Pick,
    asked: str,
    packing: bool | None = None,
    *,
    stored: Stored | None = None,
) -> Decision:
    """How decoder layers are computed; see `TorchOptions.decoder`.

    Args:
        stored: how the base's linear weights are stored, if not as plain numbers.

    Raises:
        PlanError: the stream decoder is asked for and cannot be used.
    """
    from finetooth_kernels.segment_attention import available

    setting = "backend.decoder"
    if facts.block is None:
        reason = "the model's family does not describe its layers"
    elif hardware.device != "cpu":
        reason = f"it is written for CPUs, not for {hardware.label}"
    elif not available().available:
        reason = available().reason
    elif stored is not None:
        reason = f"the base is stored as {stored.name}, with which only its own modules compute"
    elif attention != AUTO:
        reason = f"backend.attention={attention} is for the model's own code"
    elif packing is False:
        reason = "backend.packing=false asks for padding, and it has none"
    else:
        reason = ""
    if asked == STREAM and reason:
        raise PlanError(f"{setting}={STREAM}: {reason}", action=f"set {setting} to auto or transformers")
    if asked == "transformers":
        return Decision(setting, asked, RECIPE)
    if reason:
        return Decision(setting, "transformers", reason)
    better = "no padding, linear layers of the same input as one product, common beginnings once"
    return Decision(setting, STREAM, RECIPE if asked == STREAM else better)


def _packing(
    request: PlanRequest, attention: AttentionChoice | None, asked: bool | None, micro_batch: int
) -> tuple[Decision, Filling | None]:
    """Whether data share rows, and how.

    Args:
        attention: of the model's own code; None: the stream decoder computes the layers.

    Raises:
        PlanError: the model cannot keep apart what is to share a row.
    """
    setting = "backend.packing"
    steps = likely_steps(request.data.lengths, request.train.batch_size) if request.data.lengths else []
    before = padding(steps, micro_batch, None)
    if attention is None:
        return Decision(setting, True, f"the stream decoder has no padding{_instead(steps, before)}"), None
    found = obstacle(request.base.model.config, attention)
    if found and asked:
        raise PlanError(f"{setting}=true: {found}", action=f"set {setting} to auto or false")
    if found and request.data.segmented:
        raise PlanError(
            f"method: its sequences hold several documents, which cannot be kept apart: {found}",
            action="set method.isolate_documents: false",
        )
    if asked is False or found:
        return Decision(setting, False, found or RECIPE), None
    filling = attention.filling
    after = padding(steps, micro_batch, filling)
    reason = f"about {after:.0%} padding{_instead(steps, before)}" if after < before else "where it saves padding"
    return Decision(setting, True, RECIPE if asked and not steps else reason), filling


def _instead(steps: Sequence[Sequence[int]], before: float) -> str:
    return f" instead of about {before:.0%}" if steps and before else ""


def _no_padding(steps: Sequence[Sequence[int]]) -> float:
    del steps
    return 0.0


def _attention(request: PlanRequest, asked: Pick, precision: str, context: Context | None) -> AttentionChoice:
    base, hardware = request.base, request.place.hardware
    return choose_attention(context, asked, base.facts, base.model.config, hardware, precision)
