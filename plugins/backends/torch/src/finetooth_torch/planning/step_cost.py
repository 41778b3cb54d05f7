"""Estimates the cost of steps from the model's config, the plan and the lengths of examples. No weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from finetooth_hooks import TrainSettings
from finetooth_hooks.protocols import ModelFacts, PickedKernel, PlanRequest, StepCost
from finetooth_steps.layout import filled
from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.llama_shape import layer_matrices, layer_weights, linear_shapes

from finetooth_torch.planning.flops import Computed, Execution, count, planned_cost

UNKNOWN_SHARE = 0.1
"""Tolerance of the parameter count of layers: norms, biases and other small parts."""


def step_cost(
    request: PlanRequest,
    train: TrainSettings,
    filling: Filling | None,
    *,
    stream: bool,
    fused: bool,
    kernels: Mapping[str, PickedKernel],
    routed: bool = False,
) -> StepCost | str:
    """See `BackendPlan.cost`.

    Args:
        train: as decided.
        filling: how examples share rows; None if they do not.
        stream: the stream decoder computes the layers.
        fused: attention forms its scores piece by piece; see `AttentionServes`.
        kernels: as they were picked.
        routed: routers have losses, which need another forward pass over a whole step.
    """
    facts = request.base.facts
    if not _counts_layers(facts, request.base.model.parameters):
        return "what its layers compute does not follow from the model's config"
    whole = request.trains.parameters >= request.base.model.parameters
    model = planned_cost(facts, full=whole, rank=0 if whole else rank_of(facts, request.trains.parameters))
    how = Execution(
        skips_masked=fused,
        rescores=fused,
        checkpointing=bool(train.gradient_checkpointing),
        relogits=not _logits_once(request, str(train.precision), kernels),
    )
    layout = partial(_layout, budget=int(train.micro_batch_tokens or 0), filling=filling, stream=stream)

    def flops(steps: Sequence[Sequence[int]], share: float) -> float:
        total = 0.0
        for step in steps:
            # after the last layer's attention the stream decoder continues only at trained positions
            computed = [
                Computed(segments, rows := round(share * used), across, rows if stream else None)
                for segments, across, used in layout(step)
            ]
            total += count(model, computed, how).total
            if routed and len(computed) > 1:
                total += count(model, [replace(batch, head_rows=0) for batch in computed], how).forward
        return total

    def peak() -> float:
        from finetooth_torch.planning.peak_flops import peak_flops

        return peak_flops(request.place.hardware, str(train.precision))

    return StepCost(flops, peak)


def _logits_once(request: PlanRequest, precision: str, kernels: Mapping[str, PickedKernel]) -> bool:
    """Whether a head that trains computes its logits once: see `Network.outputs`."""
    from finetooth_kernels.linear_logprob import foresees

    from finetooth_torch.compute import Compute
    from finetooth_torch.precision import DTYPES

    if request.proportional_to is None or not Compute.of(kernels).expects:
        return False
    return foresees(DTYPES[precision], 1, trains_bias=False)


def _layout(
    step: Sequence[int], *, budget: int, filling: Filling | None, stream: bool
) -> Iterator[tuple[tuple[int, ...], float, int]]:
    """Micro-batches of a step: lengths of segments, pairs between them, and positions without padding."""
    if stream:
        yield tuple(step), 0.0, sum(step)
        return
    for batch in filled(step, budget, filling):
        yield *_segments(batch, filling), sum(batch.lengths)


def _segments(batch: MicroBatch, filling: Filling | None) -> tuple[tuple[int, ...], float]:
    if not batch.filled:
        return (batch.width,) * len(batch.rows), 0.0
    if filling == "stream":
        return batch.lengths, 0.0
    rows = len(batch.filled)
    width = batch.positions // rows
    return (width,) * rows, rows * width * (width - 1) / 2  # masked pairs are computed too


def _counts_layers(facts: ModelFacts, parameters: int) -> bool:
    """Whether the count covers the layers' parameters, up to small parts."""
    known = linear_shapes(facts)
    if not facts.per_layer and not all(name.rsplit(".", 1)[-1] in known for name in facts.linear_targets):
        return False
    counted = layer_weights(facts)
    layers = parameters - facts.vocab_size * facts.hidden_size * (1 if facts.tied else 2)
    return abs(layers - counted) <= UNKNOWN_SHARE * counted


def rank_of(facts: ModelFacts, trained: int) -> int:
    """The rank at which low-rank adapters on all linear modules have the adapter's number of parameters: an adapter is
    small next to the model, so its distribution matters little. 0 if the facts do not give the modules' shapes."""
    a_rank = sum(map(sum, layer_matrices(facts)))
    return max(1, round(trained / a_rank)) if a_rank else 0
