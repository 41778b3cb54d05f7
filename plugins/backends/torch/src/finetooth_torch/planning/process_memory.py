"""Bytes that this process uses, and that every run adds."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from finetooth_hooks.protocols import EngineRequest, PlanRequest

from finetooth_torch.planning.base_bytes import kept_by_others, resident_bytes
from finetooth_torch.planning.layer_memory import BYTES

HOST_LATER = 104 * 2**20
"""Host memory that an engine and its first steps add without tensors: code of kernels and small libraries, objects of
Python and autograd, thread stacks, and fragmentation of malloc. Measured: 44 MiB until the engine is built and 60 after
that, on SmolLM2-135M over mxfp4."""

MODULES = {
    "torch._dynamo": 43 * 2**20,
    "bitsandbytes": 40 * 2**20,
    "transformers.modeling_utils": 77 * 2**20,
}
"""Memory of the modules that building a model and an adapter imports; peft and transformers import installed libraries
too. Modules that a quantizer's library imported before the plan are measured with the process. Importing all of them to
measure them would add seconds to each `ft check`."""


def peak_memory(device: object) -> int:
    """Peak bytes: of the process's resident set on the host, of torch's allocator on an accelerator."""
    import torch

    device = torch.device(str(device))
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":  # has no peak: the memory held, which it rarely returns
        return int(torch.mps.driver_allocated_memory())
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


def host_overhead() -> int:
    """Measured bytes of this process with the framework loaded, plus what the first step adds.

    What malloc holds of freed memory is given back first: it depends on what the process did before (reading rows
    takes much for a moment), and the run uses it again.
    """
    import torch  # noqa: F401

    from finetooth_torch.device.host_memory import trim

    trim()
    missing = [name for name in MODULES if name not in sys.modules and find_spec(name.partition(".")[0])]
    return host_memory("VmRSS") + sum(MODULES[name] for name in missing) + HOST_LATER


def loading_bytes(request: PlanRequest, precision: str, *, away: bool = False) -> int:
    """Host memory of the base during loading: its largest module, as read and as stored, if the loader moves modules to
    the device one by one, else the whole base. Trained weights are read in fp32, the masters' precision."""
    model, facts = request.base.model, request.base.facts
    if model.loading_bytes is not None:
        return model.loading_bytes
    if request.base.quantizer is None and model.resident_bytes is not None:
        return model.resident_bytes
    size = BYTES[precision] if request.trains.base_frozen else 4
    quantizer = request.base.quantizer
    uncalibrated = quantizer is None or "calibrate" not in quantizer.capabilities
    sharding = request.place.sharding
    whole = sharding is not None and (
        sharding.shard is not None or (sharding.stages is not None and not reads_apart(request))
    )
    if model.by_module and uncalibrated and not away:
        words = facts.vocab_size * facts.hidden_size
        of_module = (size + 4) * max(words, (model.parameters - words) // facts.layers)
        if not whole:
            return of_module
        if quantizer is not None:
            return resident_bytes(request.base, precision) - kept_by_others(request) + of_module
    return model.parameters * size


def reads_apart(request: PlanRequest | EngineRequest) -> bool:
    """Whether ranks of a pipeline read only their own layers. An adapter that starts from sums over rows needs all
    layers."""
    base = request.base
    whole = base.stored is not None or request.trains.adapter.beginning_bytes(base.facts)
    return base.model.by_module and "tensors" in base.loader.capabilities and not whole
