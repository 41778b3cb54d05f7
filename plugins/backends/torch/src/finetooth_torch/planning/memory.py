"""How much memory a run will take, and how much it took."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from finetooth_hooks import MemoryEstimate
from finetooth_hooks.protocols import BasePart, ModelFacts, PlanRequest, Quantizer
from finetooth_toolbox.llama_shape import linear_shapes

GENERATION_BATCHES = 4
"""Positions of a batch that is sampled, in micro-batches."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
"""Of one number in each precision."""


def peak_memory(device: object) -> int:
    """Peak bytes: of the process's resident set on the host, of torch's allocator on an accelerator."""
    import torch

    device = torch.device(str(device))
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return host_memory("VmHWM")


def host_memory(field: str) -> int:
    """Bytes of this process: `VmHWM` is the peak of its resident set, `VmRSS` what it holds now."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource  # elsewhere (macOS) only the peak is known, in bytes there

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


FRAGMENTATION = {"fp32": 1.75, "bf16": 1.45, "fp16": 1.45, "fp64": 1.75}
"""On a host, resident memory per byte of saved activations: malloc cannot reuse the holes that short-lived tensors
leave between long-lived ones. Measured on SmolLM2-135M (glibc); giving each tensor pages of its own avoids it and
costs a third of the speed."""

DEVICE_OVERHEAD = 64 * 2**20
"""What the framework keeps of an accelerator for itself."""

HOST_LATER = 120 * 2**20
"""Code, thread stacks and compiled GEMM kernels that the first step brings into a host process."""


MODELING = 40 * 2**20
"""What the modules that build models, and peft, add to a process: 142 MiB to an empty one, 24 as measured where data
and weights that were read before have left memory free. Loading them to measure them takes seconds of each `ft check`.
"""


def estimate(
    request: PlanRequest, precision: str, micro_batch_tokens: int, *, checkpointing: bool, stream: bool
) -> MemoryEstimate:
    """Peak by parts, before any weight is loaded.

    Args:
        stream: the stream decoder computes the layers. Otherwise activations are what transformers' Llama saves for
            backward; other families differ by little.
    """
    from finetooth_kernels.contract import DEFAULT_CHUNK_BYTES

    facts, size = request.base.facts, BYTES[precision]
    trained, base, frozen = request.trains.parameters, request.base.model.parameters, request.trains.base_frozen
    full = not frozen and trained > base // 2  # norms and the head train too
    on_host = request.place.hardware.device == "cpu"
    masters = 4 * trained if precision in ("bf16", "fp16") else 0
    tokens = tokens_at_once(request, micro_batch_tokens, packed=stream)

    layer = stream_layer_bytes(request, precision) if stream else layer_bytes(request, precision, full=full)
    between = max(4, size) if stream else size  # of the residual stream
    layers = facts.layers * between * facts.hidden_size + layer if checkpointing else facts.layers * layer
    fragments = 1.0 if stream else FRAGMENTATION[precision]  # the stream decoder cuts what it saves from blocks
    activations = tokens * layers * (fragments if on_host else 1.05)
    if stream:
        activations += tokens * backward_bytes(request, precision)
    if "generate" in request.needs:
        sampling = GENERATION_BATCHES * micro_batch_tokens * generation_bytes(request, precision, stream=stream)
        packed = resident_bytes(request.base, precision) if stream and on_host else 0  # weights packed anew
        activations = max(activations, sampling + packed)
    logits = min(DEFAULT_CHUNK_BYTES, 4 * tokens * facts.vocab_size)
    head_gradient = (4 + size) * facts.vocab_size * facts.hidden_size if full else 0
    weights = resident_bytes(request.base, precision) + (trained * size if frozen else 0)
    overhead = host_overhead()
    held = {"roles": request.role_parameters * size} if request.role_parameters else {}
    return MemoryEstimate(
        {
            **held,
            "weights": int(weights + masters),
            "gradients": int(4 * trained + head_gradient),
            "optimizer": int(request.updates.state_bytes * trained),
            "activations": int(activations),
            "logits": int(logits),
            "overhead": overhead if on_host else DEVICE_OVERHEAD,
        },
        host={} if on_host else {"overhead": overhead},
    )


def resident_bytes(base: BasePart, precision: str) -> int:
    """What the base's weights take once they are loaded: as its loader says, as its quantizer stores them, else in the
    precision of the run."""
    size, model = BYTES[precision], base.model
    if base.quantizer is None:
        return model.parameters * size if model.resident_bytes is None else model.resident_bytes
    stored = linear_weights(base.quantizer, base.facts)
    return int((model.parameters - stored) * size + stored * base.quantizer.stored.bytes_per_weight)


def linear_weights(quantizer: Quantizer, facts: ModelFacts) -> int:
    """How many weights of the decoder layers a quantizer will store, those of linear modules whose shape follows from
    the facts."""
    shapes = linear_shapes(facts)
    names = {name.rsplit(".", 1)[-1]: name for name in facts.linear_targets}
    found = 0
    for layer in range(facts.layers):
        for name, target in names.items():
            inputs, outputs = shapes.get(name, (0, 0))
            if inputs and quantizer.takes(f"{facts.layer_path}.{layer}.{target}", (outputs, inputs)):
                found += inputs * outputs
    return found


def tokens_at_once(request: PlanRequest, micro_batch_tokens: int, *, packed: bool) -> int:
    """Positions of the largest micro-batch.

    Packed, a micro-batch holds what its rows hold: at most the budget, and hardly more than a step whose rows are three
    standard deviations above the average. Padded, it may fill the budget whatever the rows.
    """
    train, longest = request.train, request.data.longest
    if not packed or not request.data.mean_length:
        return max(longest, min(micro_batch_tokens, train.batch_size * longest))
    step = train.batch_size * request.data.mean_length + 3 * math.sqrt(train.batch_size) * request.data.length_deviation
    step = min(step, train.batch_size * longest)
    parts = max(1, math.ceil(step / micro_batch_tokens))  # micro-batches of a step get equal shares
    return max(longest, math.ceil(step / parts))


def layer_bytes(request: PlanRequest, precision: str, *, full: bool) -> int:
    """Bytes that one decoder layer of transformers' saves per token.

    The two norms save their input in fp32; the projections their inputs; attention q, k, v and its output; the gated
    feed-forward four tensors of its width. Weights of norms, where they train, need the norms' outputs too.
    """
    facts, size = request.base.facts, BYTES[precision]
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    width = 2 * max(4, size) + (4 if full else 2) * size
    return width * facts.hidden_size + 2 * size * heads + 2 * size * kv + 4 * size * facts.ffn_size


def stream_layer_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes that one layer of the stream decoder saves per token, low-rank parts aside.

    The input of each norm, which is of the residual stream, with one number a row, rotated queries, keys and values,
    the output of attention with a number a head, gate and up; all else, also what a weight's gradient needs, is made
    again. Norms over each head save their inputs as well.
    """
    facts, size, wide = request.base.facts, BYTES[precision], max(4, BYTES[precision])
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    saved = size * (2 * heads + 2 * kv + 2 * facts.ffn_size) + wide * (2 * facts.hidden_size + 2 + facts.heads)
    if facts.block is not None and facts.block.query_norm:
        saved += size * (heads + kv) + wide * (facts.heads + facts.kv_heads)
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
    cache = 2 * facts.layers * facts.kv_heads * facts.head_dim * size
    if stream:
        return cache + 3 * facts.ffn_size * size + (3 * wide + 2 * size) * facts.hidden_size
    return cache * 3 // 2 + (6 * facts.ffn_size + 8 * facts.hidden_size) * size


def host_overhead() -> int:
    """Bytes this process takes with the framework loaded, which is measured, and what the first step will add."""
    import torch  # noqa: F401

    later = 0 if "transformers.modeling_utils" in sys.modules else MODELING
    return host_memory("VmRSS") + later + HOST_LATER
