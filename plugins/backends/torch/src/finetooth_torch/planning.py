"""What the torch backend decides before any weight is loaded, each with its reason."""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks import Decision, PlanError, TrainSettings
from finetooth_hooks.protocols import BackendPlan, HardwareFacts, ModelFacts, PlanRequest

from finetooth_torch.memory import estimate

RECIPE = "the recipe says so"
STREAM = "stream"
CPU_MICRO_BATCH = 4096
ACCELERATOR_MICRO_BATCH = 16384


def decide(request: PlanRequest, attention: str | None, decoder: str = "auto") -> BackendPlan:
    """Decide precision, micro-batch and checkpointing, and estimate the memory.

    Raises:
        PlanError: a setting asks for what the hardware or the optimizer cannot do.
    """
    precision = _precision(request.train.precision, request.hardware)
    micro_batch = _micro_batch(request)
    layers = _layers(request, attention, decoder)
    stream = layers[0].value == STREAM
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
    return BackendPlan(train, (precision, micro_batch, checkpointing, *layers, _head(request, train)), memory)


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
        if request.mean_length and asked < request.longest:
            row = f"row {request.longest_id}" if request.longest_id else "the longest row"
            raise PlanError(
                f"{setting}={asked}: {row} has {request.longest} tokens, which do not fit",
                action=f"set it to auto or at least {request.longest}, or lower train.max_length below {asked + 1}",
            )
    else:
        asked = CPU_MICRO_BATCH if request.hardware.device == "cpu" else ACCELERATOR_MICRO_BATCH
        reason = "enough rows to keep the GEMMs busy, little memory"
        if asked < request.longest:
            asked, reason = request.longest, "as much as the longest row"
    if not request.accumulation:
        whole = request.train.batch_size * max(request.longest, 1)
        if request.train.micro_batch_tokens is not None and asked < whole:
            raise PlanError(
                f"{setting}={asked} cuts a step of up to {whole} tokens, and optimizer {request.optimizer} cannot "
                "accumulate gradients",
                action=f"set {setting} to auto, or choose another optimizer",
            )
        asked, reason = max(asked, whole), f"a whole step: optimizer {request.optimizer} cannot accumulate gradients"
    return Decision(setting, asked, reason)


def _checkpointing(request: PlanRequest, precision: str, micro_batch: int, *, stream: bool) -> Decision:
    setting, asked = "train.gradient_checkpointing", request.train.gradient_checkpointing
    if asked and not request.checkpointing:
        raise PlanError(
            f"{setting}=true: optimizer {request.optimizer} does not work with it",
            action=f"set {setting} to false, or choose another optimizer",
        )
    if asked is not None:
        return Decision(setting, asked, RECIPE)
    needed = estimate(request, precision, micro_batch, checkpointing=False, stream=stream).total
    has = request.hardware.memory
    figures = f"{needed / 2**30:.1f} of {has / 2**30:.1f} GiB"
    if needed <= has:
        return Decision(setting, False, f"activations fit: {figures}")
    if not request.checkpointing:
        return Decision(setting, False, f"optimizer {request.optimizer} does not work with it ({figures} needed)")
    return Decision(setting, True, f"without it the run would take {figures}")


def _layers(request: PlanRequest, attention: str | None, decoder: str) -> tuple[Decision, ...]:
    chosen = choose_decoder(request.facts, request.hardware, attention, decoder)
    return (chosen, _kernels()) if chosen.value == STREAM else (chosen, _attention(request, attention))


def _kernels() -> Decision:
    """What computes attention, norms and activations of the stream decoder."""
    from finetooth_kernels.native import available

    compiled = available()
    return Decision("backend.kernels", "native" if compiled.available else "torch", compiled.reason)


def choose_decoder(facts: ModelFacts, hardware: HardwareFacts, attention: str | None, asked: str) -> Decision:
    """How decoder layers are computed; see `TorchOptions.decoder`.

    Raises:
        PlanError: the stream decoder is asked for and cannot be used.
    """
    from finetooth_kernels.segment_attention import available

    setting = "backend.decoder"
    if facts.block is None:
        obstacle = "the model's family does not describe its layers"
    elif hardware.device != "cpu":
        obstacle = f"it is written for CPUs, not for {hardware.label}"
    elif not available().available:
        obstacle = available().reason
    elif attention is not None:
        obstacle = f"backend.attention={attention} is transformers' own"
    else:
        obstacle = ""
    if asked == STREAM and obstacle:
        raise PlanError(f"{setting}={STREAM}: {obstacle}", action=f"set {setting} to auto or transformers")
    if asked == "transformers":
        return Decision(setting, asked, RECIPE)
    if obstacle:
        return Decision(setting, "transformers", obstacle)
    reason = "no padding, linear layers of the same input as one product, common beginnings once"
    return Decision(setting, STREAM, RECIPE if asked == STREAM else reason)


def _head(request: PlanRequest, train: TrainSettings) -> Decision:
    """Which implementation computes log-probabilities through the head."""
    from finetooth_kernels.implementations import choose

    from finetooth_torch.precision import DTYPES

    try:
        chosen = choose(request.hardware.device, DTYPES[str(train.precision)])
    except ValueError as error:
        raise PlanError(f"backend.head: {error}", action="choose another hardware or train.precision") from error
    return Decision("backend.head", chosen.implementation.name, chosen.reason)


def _attention(request: PlanRequest, asked: str | None) -> Decision:
    known = request.hardware.attention
    if asked is None:
        return Decision("backend.attention", known[0], f"the first choice on {request.hardware.label}")
    if asked not in known:
        raise PlanError(
            f"backend.attention={asked!r}: not possible on {request.hardware.label}",
            action=f"set it to {' or '.join(known)}",
        )
    return Decision("backend.attention", asked, RECIPE)
