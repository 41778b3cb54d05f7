"""Memory that a model's layers keep for their backward pass, and use temporarily, in bytes per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetooth_hooks.protocols import Block, PlanRequest
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.llama_shape import cached_numbers

from finetooth_torch.planning.fp8 import FP8
from finetooth_torch.planning.offload import DEVICE, Offload
from finetooth_torch.planning.step_cost import rank_of

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
"""Bytes per number in each precision."""

UNKNOWN_LAYERS = 1.1
"""Factor on a layer's saved memory on an accelerator if the family does not describe its norms: it may have more than
Llama."""


@dataclass(frozen=True)
class HeldByAttention:
    """What the attention of the model's own code keeps for its backward pass, besides queries, keys, values and output.

    Attributes:
        masked: sequences share rows under a dense mask, which each layer keeps as numbers; keys and values are repeated
            for every query head.
        fused: scores are not stored.
        filling: how examples share rows; None: rows are padded.
    """

    masked: bool = False
    fused: bool = True
    filling: Filling | None = None


def residual_bytes(precision: str, *, stream: bool) -> int:
    """Bytes of a number of the residual stream, which is float32 in the stream decoder, and in fp16 anywhere."""
    return max(4, BYTES[precision]) if stream or precision == "fp16" else BYTES[precision]


def by_layer(
    request: PlanRequest, precision: str, bytes_of: Callable[[PlanRequest], float], *, full: bool, unknown: float = 1.0,
    residual: int | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Bytes per token that a layer saves: on average, and at most.

    A layer without attention keeps the outputs of its mixer's modules. A layer with experts keeps what the active ones
    save, and the result of each; if they train, also a copy of its input, and what its last product reads. A clamped
    expert keeps three more tensors of its width. A norm keeps its input in fp32, and the normalised input if its weight
    trains.

    Args:
        bytes_of: of a model with equal layers and two norms like Llama's.
        full: the base trains.
        unknown: factor if the family does not describe its norms.
        residual: bytes of a number that a norm's weight multiplies; None: of the layers' numbers.
    """
    facts = request.base.facts
    if not facts.per_layer:
        alike = bytes_of(request) * (1.0 if _like_llama(facts.block) else unknown)
        return alike, alike
    size, wide = residual or BYTES[precision], max(4, BYTES[precision])
    saved = []
    for layer in facts.per_layer:
        width = layer.ffn_size
        if experts := layer.experts:
            of_one = (3 + full + 3 * experts.clamped) * experts.width + (1 + full) * facts.hidden_size
            width += experts.shared + experts.active * of_one // 4
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
    feed-forward four tensors of its width. Trained weights of norms need what they multiply too.
    """
    facts, size = request.base.facts, BYTES[precision]
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    width = 2 * max(4, size) + 2 * size + (2 * residual_bytes(precision, stream=False) if full else 0)
    return width * facts.hidden_size + 2 * size * heads + 2 * size * kv + 4 * size * facts.ffn_size


def accelerator_layer_bytes(request: PlanRequest, precision: str, *, full: bool, attention: HeldByAttention) -> float:
    """Bytes that one decoder layer of transformers' saves per token on an accelerator, traced for Llama and Qwen3.

    In addition to `layer_bytes`: a number for each head and norm, the inputs of norms over heads (and their outputs if
    their weights train), the tensors between an adapter's two matrices; with a dense mask, the mask as numbers, and
    keys and values for every query head; without fused attention, the scores, before and after rounding.
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
    """Bytes per token of one layer's tensors between the two matrices of adapters; 0 if the base trains."""
    facts = request.base.facts
    if not request.trains.base_frozen:
        return 0
    return BYTES[precision] * rank_of(facts, request.trains.parameters) * len(facts.linear_targets)


def own_bytes(request: PlanRequest, precision: str, *, stream: bool) -> float:
    """Bytes per token that an adapter's own modules keep in a layer: none where the stream decoder computes them. Over
    a weight in fewer bits it may call them."""
    adapter, plain = request.trains.adapter, request.base.stored is None and request.train.precision != FP8
    if stream and plain and "low_rank" in adapter.capabilities:
        return 0.0
    return adapter.token_bytes(request.base.facts, precision)


def score_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token of the scores of attention that is not fused: in fp32 and rounded, and after a cap; with sinks,
    which are one more column, only in the layers' precision."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    per_score = size if facts.attention.sinks else wide + size
    per_score += size if facts.attention.softcap is not None else 0
    return per_score * facts.heads * (request.data.longest + facts.attention.sinks)


def accelerator_backward_bytes(request: PlanRequest, precision: str) -> int:
    """Additional bytes per token at the peak of the backward pass, in a norm, which computes in fp32: gradients of its
    input, scaled and normalised, and of the residual stream. Traced for Llama and Qwen3."""
    size, wide = BYTES[precision], max(4, BYTES[precision])
    return request.base.facts.hidden_size * (4 * wide + 2 * size)


def stream_layer_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes that one layer of the stream decoder saves per token, low-rank parts aside.

    It saves each norm's input, of the residual stream, with one number per row; rotated queries, keys and values;
    attention's output with a number per head; gate and up. It recomputes the rest, including what a weight's gradient
    needs. Norms over heads, and norms on a block's output, save their inputs too.
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
    """Peak bytes per token in the backward pass of one layer of the stream decoder, in the feed-forward block: its
    recomputed rows, their gradient, and those of gate and up."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    return size * (6 * facts.ffn_size + 2 * facts.hidden_size) + wide * 2 * facts.hidden_size


def generation_bytes(request: PlanRequest, precision: str, *, stream: bool) -> int:
    """Bytes per token of a sampling batch: its keys and values (transformers' cache takes half as much again while it
    grows) and one layer's tensors while the prompts are read. In the stream decoder these are gate, up and their
    product, the residual stream before, between and after, attention's output and its normalised rows."""
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    cache = cached_numbers(facts) * size
    if stream:
        return cache + 3 * facts.ffn_size * size + (3 * wide + 2 * size) * facts.hidden_size
    residual = residual_bytes(precision, stream=False)
    return cache * 3 // 2 + 6 * facts.ffn_size * size + (6 * size + 2 * residual) * facts.hidden_size


def feed_forward_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token of a feed-forward block computed in pieces: gate, up, their product and its parts, and their
    gradients."""
    facts = request.base.facts
    widths = [facts.ffn_size]
    for layer in facts.per_layer:
        experts = layer.experts
        widths.append(layer.ffn_size + (0 if experts is None else experts.shared + experts.active * experts.width))
    return 8 * BYTES[precision] * max(widths)


def without_feed_forward(request: PlanRequest) -> PlanRequest:
    """The same for layers without the memory of their feed-forward blocks."""
    facts = request.base.facts
    layers = tuple(replace(layer, ffn_size=0, experts=None) for layer in facts.per_layer)
    return replace(request, base=replace(request.base, facts=replace(facts, ffn_size=0, per_layer=layers)))


def split_bytes(
    layers: int, between: float, layer: tuple[float, float], offload: Offload, *, checkpointing: bool
) -> tuple[float, float]:
    """Bytes per token that layers keep for the backward pass: on the device, and elsewhere.

    Args:
        between: what stays between two layers with recomputation.
        layer: what one keeps, on average and at most.
    """
    average, most = layer
    every = layers * between + most if checkpointing else layers * average
    if offload.activations == DEVICE:
        return every, 0.0
    return min(every, 2 * most), every  # the current layer, and the next one's tensors on their way back
