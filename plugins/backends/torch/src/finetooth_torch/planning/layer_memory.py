"""What the layers of a model keep for their backward pass, and hold for a moment, in bytes per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetooth_hooks.protocols import Block, PlanRequest
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.llama_shape import cached_numbers

from finetooth_torch.planning.offload import DEVICE, Offload
from finetooth_torch.planning.step_cost import rank_of

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
"""Of one number in each precision."""

UNKNOWN_LAYERS = 1.1
"""Factor on what a layer saves on an accelerator where the family does not say what norms it holds: they may be more
than Llama's."""


@dataclass(frozen=True)
class HeldByAttention:
    """What attention of the model's own code keeps for its backward pass in addition to queries, keys, values, output.

    Attributes:
        masked: sequences share rows under a dense mask, which each layer keeps as numbers to be added; keys and values
            are repeated for every query head.
        fused: scores are not held.
        filling: how data share rows; None: rows are padded.
    """

    masked: bool = False
    fused: bool = True
    filling: Filling | None = None


def by_layer(
    request: PlanRequest, precision: str, bytes_of: Callable[[PlanRequest], float], *, full: bool, unknown: float = 1.0
) -> tuple[float, float]:
    """Bytes per token that a layer saves: on average, and the most that one does.

    A layer without attention keeps what its mixer's modules give; one with experts what the active ones hold, and for
    each of them the copy of its input and its result. A clamped expert keeps three more tensors of its width, two of
    them only where it trains. A norm keeps its input in fp32, and where its weight trains what that multiplies.

    Args:
        bytes_of: of a model whose layers are all alike, with two norms of Llama's kind.
        full: the base trains.
        unknown: factor where the family does not say what norms its layers hold.
    """
    facts = request.base.facts
    if not facts.per_layer:
        alike = bytes_of(request) * (1.0 if _like_llama(facts.block) else unknown)
        return alike, alike
    size, wide = BYTES[precision], max(4, BYTES[precision])
    saved = []
    for layer in facts.per_layer:
        width = layer.ffn_size
        if experts := layer.experts:
            width += experts.shared + experts.active * (experts.width + facts.hidden_size // 2)
            width += experts.clamped * experts.active * experts.width * (3 if full else 1) // 4
        mixed = sum(outputs for _, outputs in layer.mixing.values())
        head = (layer.head_dim + (layer.value_dim or layer.head_dim)) // 2
        heads, kv_heads, head_dim = (layer.heads, layer.kv_heads, head) if layer.heads else (1, 0, mixed)
        like = replace(facts, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn_size=width, per_layer=())
        alike = bytes_of(replace(request, base=replace(request.base, facts=like)))
        multiplied = layer.norms * (wide if layer.wide_norms else size) - 2 * size if full else 0
        norms = facts.hidden_size * ((layer.norms - 2) * wide + multiplied)
        saved.append(alike + norms if layer.norms else alike * unknown)
    return sum(saved) / len(saved), max(saved)


def _like_llama(block: Block | None) -> bool:
    """Whether norms are Llama's."""
    return block is not None and block.norms == "rms" and not block.attention_after


def layer_bytes(request: PlanRequest, precision: str, *, full: bool) -> int:
    """Bytes that one decoder layer of transformers' saves per token.

    The two norms save their input in fp32; the projections their inputs; attention q, k, v and its output; the gated
    feed-forward four tensors of its width. Weights of norms, where they train, need the norms' outputs too.
    """
    facts, size = request.base.facts, BYTES[precision]
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    width = 2 * max(4, size) + (4 if full else 2) * size
    return width * facts.hidden_size + 2 * size * heads + 2 * size * kv + 4 * size * facts.ffn_size


def accelerator_layer_bytes(request: PlanRequest, precision: str, *, full: bool, attention: HeldByAttention) -> float:
    """Bytes that one decoder layer of transformers' saves per token on an accelerator, traced for Llama and Qwen3.

    In addition to what `layer_bytes` counts: a number for each head and norm, the inputs of norms over heads (and their
    outputs where their weights train), what low-rank additions keep between their two matrices; under a dense mask the
    mask as numbers and keys and values for every query head; of attention that is not fused the scores, before and
    after they are rounded.
    """
    facts, size = request.base.facts, BYTES[precision]
    wide, row = max(4, size), request.data.longest
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    saved: float = layer_bytes(request, precision, full=full) + wide * (facts.heads + 2)
    if facts.block is not None and facts.block.query_norm:
        saved += wide * (heads + kv + facts.heads + facts.kv_heads) + (size * (heads + kv) if full else 0)
    saved += low_rank_bytes(request, precision)
    if attention.masked or not attention.fused:
        saved += 2 * size * (heads - kv)
    if attention.masked and attention.fused:
        saved += size * row
    return saved + (0 if attention.fused else score_bytes(request, precision))


def low_rank_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token that one layer's low-rank additions keep between their two matrices; 0 where the base trains."""
    facts = request.base.facts
    if not request.trains.base_frozen:
        return 0
    return BYTES[precision] * rank_of(facts, request.trains.parameters) * len(facts.linear_targets)


def score_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token of attention's scores where it is not fused: in fp32 and rounded, with what a cap gives; with
    sinks, which are a column more, in the layers' precision alone."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    per_score = size if facts.attention.sinks else wide + size
    per_score += size if facts.attention.softcap is not None else 0
    return per_score * facts.heads * (request.data.longest + facts.attention.sinks)


def accelerator_backward_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token that the backward pass holds at its peak in addition, in a norm, which computes in fp32:
    gradients of what it was given, scaled and normalised, and of the residual stream. Traced for Llama and Qwen3."""
    size, wide = BYTES[precision], max(4, BYTES[precision])
    return request.base.facts.hidden_size * (4 * wide + 2 * size)


def stream_layer_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes that one layer of the stream decoder saves per token, low-rank parts aside.

    The input of each norm, which is of the residual stream, with one number a row, rotated queries, keys and values,
    the output of attention with a number a head, gate and up; all else, also what a weight's gradient needs, is made
    again. Norms over each head save their inputs as well, and so do norms on what a layer adds.
    """
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    saved = size * (2 * heads + 2 * kv + 2 * facts.ffn_size) + wide * (2 * facts.hidden_size + 2 + facts.heads)
    if facts.block is not None and facts.block.query_norm:
        saved += size * (heads + kv) + wide * (facts.heads + facts.kv_heads)
    if facts.block is not None and facts.block.attention_after:
        saved += 2 * (wide if facts.block.norms == "rms_plus_one" else size) * facts.hidden_size
    return saved


def backward_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token that the backward pass of one layer of the stream decoder holds at its peak, in the feed-forward
    block: its rows made again, their gradient, and gate's and up's."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    return size * (6 * facts.ffn_size + 2 * facts.hidden_size) + wide * 2 * facts.hidden_size


def generation_bytes(request: PlanRequest, precision: str, *, stream: bool) -> int:
    """Bytes per token of a batch that is sampled: its keys and values (transformers' own cache takes half as much again
    while it grows) and what one layer holds while the prompts are read. In the stream decoder that is gate, up and
    their product, the residual stream before, between and behind, attention's output and its normalised rows."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    cache = cached_numbers(facts) * size
    if stream:
        return cache + 3 * facts.ffn_size * size + (3 * wide + 2 * size) * facts.hidden_size
    return cache * 3 // 2 + (6 * facts.ffn_size + 8 * facts.hidden_size) * size


def feed_forward_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token of a feed-forward block that is computed in pieces: gate, up, their product and its parts, and
    their gradients."""
    facts = request.base.facts
    widths = [facts.ffn_size]
    for layer in facts.per_layer:
        experts = layer.experts
        widths.append(layer.ffn_size + (0 if experts is None else experts.shared + experts.active * experts.width))
    return 8 * BYTES[precision] * max(widths)


def without_feed_forward(request: PlanRequest) -> PlanRequest:
    """The same of layers whose feed-forward blocks keep and hold nothing."""
    facts = request.base.facts
    layers = tuple(replace(layer, ffn_size=0, experts=None) for layer in facts.per_layer)
    return replace(request, base=replace(request.base, facts=replace(facts, ffn_size=0, per_layer=layers)))


def split_bytes(
    layers: int, between: float, layer: tuple[float, float], offload: Offload, *, checkpointing: bool
) -> tuple[float, float]:
    """Bytes per token that layers keep for backward: on the device, and elsewhere.

    Args:
        between: what stays between two layers where the rest is computed again.
        layer: what one keeps, on average and at most.
    """
    average, most = layer
    every = layers * between + most if checkpointing else layers * average
    if offload.activations == DEVICE:
        return every, 0.0
    return min(every, 2 * most), every  # the layer that is computed, and what comes back while it is
