"""How much memory a run will take, and how much it took."""

from __future__ import annotations

import sys
from pathlib import Path

from finetooth_hooks import MemoryEstimate
from finetooth_hooks.protocols import PlanRequest

CHUNK_BYTES = 128 * 2**20
"""Logits held at once by `finetooth_kernels.linear_logprob`."""

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

HOST_LATER = 120 * 2**20
"""Code, thread stacks and compiled GEMM kernels that the first step brings into a host process."""


def estimate(request: PlanRequest, precision: str, micro_batch_tokens: int, *, checkpointing: bool) -> MemoryEstimate:
    """Peak by parts, before any weight is loaded.

    Activations are what transformers' Llama saves for backward in one decoder layer, counted for a frozen base with an
    adapter and for a trained one; other families differ by little.
    """
    facts, size = request.facts, BYTES[precision]
    trained, base = request.trained_parameters, request.model.parameters
    full = trained > base // 2
    on_host = request.hardware.device == "cpu"
    masters = 4 * trained if precision in ("bf16", "fp16") else 0
    tokens = max(request.longest, min(micro_batch_tokens, request.train.batch_size * request.longest))

    layer = layer_bytes(request, precision, full=full)
    layers = facts.layers * size * facts.hidden_size + layer if checkpointing else facts.layers * layer
    activations = tokens * layers * (FRAGMENTATION[precision] if on_host else 1.05)
    activations = max(activations, GENERATION_BATCHES * micro_batch_tokens * generation_bytes(request, precision))
    logits = min(CHUNK_BYTES, 4 * tokens * facts.vocab_size)
    head_gradient = (4 + size) * facts.vocab_size * facts.hidden_size if full else 0
    return MemoryEstimate(
        {
            "weights": int((base if full else base + trained) * size + masters),
            "gradients": int(4 * trained + head_gradient),
            "optimizer": int(request.optimizer_bytes * trained),
            "activations": int(activations),
            "logits": int(logits),
            "overhead": host_overhead() if on_host else 64 * 2**20,
        }
    )


def layer_bytes(request: PlanRequest, precision: str, *, full: bool) -> int:
    """Bytes that one decoder layer saves per token.

    The two norms save their input in fp32; the projections their inputs; attention q, k, v and its output; the gated
    feed-forward four tensors of its width. Weights of norms, where they train, need the norms' outputs too.
    """
    facts, size = request.facts, BYTES[precision]
    heads, kv = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    width = 2 * max(4, size) + (4 if full else 2) * size
    return width * facts.hidden_size + 2 * size * heads + 2 * size * kv + 4 * size * facts.ffn_size


def generation_bytes(request: PlanRequest, precision: str) -> int:
    """Bytes per token of a batch that is sampled: its keys and values (half as much again while they grow) and what
    one layer holds while the prompts are read."""
    facts, size = request.facts, BYTES[precision]
    cache = 2 * facts.layers * facts.kv_heads * facts.head_dim * size
    return cache * 3 // 2 + (6 * facts.ffn_size + 8 * facts.hidden_size) * size


def host_overhead() -> int:
    """Bytes this process takes with the framework loaded, and what the first step will add; measured, not guessed."""
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    return host_memory("VmRSS") + HOST_LATER
