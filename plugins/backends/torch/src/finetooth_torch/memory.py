"""How much memory a run will take, and how much it took."""

from __future__ import annotations

import sys
from pathlib import Path

from finetooth_hooks import MemoryEstimate
from finetooth_hooks.protocols import PlanRequest

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


def estimate(request: PlanRequest, precision: str, micro_batch_tokens: int, checkpointing: bool) -> MemoryEstimate:
    """Peak by parts, before any weight is loaded."""
    facts, size = request.facts, BYTES[precision]
    split = precision in ("bf16", "fp16")
    weights = request.model.parameters * size
    if request.trained_parameters < request.model.parameters:
        weights += request.trained_parameters * size
    master = 4 * request.trained_parameters if split else 0
    tokens = max(micro_batch_tokens, request.longest)
    per_layer = size * (14 * facts.hidden_size + 6 * facts.ffn_size) + 4 * 4 * facts.hidden_size
    layers = (facts.layers * size * facts.hidden_size + per_layer) if checkpointing else facts.layers * per_layer
    return MemoryEstimate(
        {
            "weights": int(weights + master),
            "gradients": int(4 * request.trained_parameters),
            "optimizer": int(request.optimizer_bytes * request.trained_parameters),
            "activations": int(tokens * layers),
            "logits": 128 * 2**20,
            "overhead": host_memory("VmRSS"),
        }
    )
