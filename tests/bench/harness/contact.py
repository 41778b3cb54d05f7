"""The first thing that `make gpu` does with a card: each way of using it once, apart, so that the page names those that
do not work here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from harness.ground import Ground
from harness.proofs import Proof

SIDE = 8192
"""Of the square matrices that are multiplied."""


def contact(ground: Ground) -> Proof:
    """What works on this card, and how long its first use took."""
    import torch

    proof = ground.begun("First contact", ("what", "on this card", "s"))
    if not torch.cuda.is_available():
        proof.notes.append("There is no accelerator: nothing was tried.")
        return proof
    return tried(ground, proof, CHECKS, torch.device("cuda", 0))


def tried(ground: Ground, proof: Proof, checks: dict[str, Callable[[Any], str]], device: Any) -> Proof:
    """A row for each check; one that raises fails the part, and the next one is tried all the same."""
    for what, check in checks.items():
        if what in {row[0] for row in proof.rows[1:]}:
            continue
        began = time.perf_counter()
        try:
            said = check(device)
        except Exception as error:
            lines = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
            proof.failed.append(f"{what}: {said}")
        proof.rows.append((what, said.replace("|", "/"), f"{time.perf_counter() - began:.1f}"))
        print(*proof.rows[-1], sep="; ", flush=True)
        ground.renewed(proof)
    return proof


def _facts(device: Any) -> str:
    import torch

    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    build = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    own = getattr(properties, "gcnArchName", "") or f"sm_{properties.major}{properties.minor}"
    return (
        f"{properties.name}, {own}, {properties.multi_processor_count} multiprocessors, {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB free; torch for {build}: {' '.join(torch.cuda.get_arch_list())}"
    )


def _hardware(device: Any) -> str:
    hardware = own_hardware()
    if missing := hardware.missing():
        raise RuntimeError(missing)
    facts = hardware.facts()
    return f"{facts.name}, {', '.join(facts.precisions)}; allocator: {facts.allocator or 'as it is'}"


def own_hardware() -> Any:
    """finetooth's entry for the GPUs of this build of torch."""
    import torch
    from finetooth_cuda.hardware import CudaHardware
    from finetooth_rocm.hardware import RocmHardware

    return CudaHardware() if torch.version.hip is None else RocmHardware()


def _timed(work: Callable[[], Any]) -> float:
    """Milliseconds by the device's clock, the best of five."""
    from kernelbench.turns import milliseconds

    return min(milliseconds("cuda", work) for _ in range(5))


def _product(device: Any) -> str:
    import torch

    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return f"{2 * SIDE**3 / 1e9 / _timed(lambda: a @ b):,.0f} TFLOP/s in bf16"


def _copies(device: Any) -> str:
    import torch

    numbers = torch.zeros(2**29, device=device, dtype=torch.uint8)
    inside = 2 * numbers.numel() / 1e6 / _timed(lambda: numbers.clone())
    pinned, stream = torch.empty(2**28, dtype=torch.uint8, pin_memory=True), torch.cuda.Stream(device)
    began = time.perf_counter()
    with torch.cuda.stream(stream):
        pinned.copy_(numbers[: pinned.numel()], non_blocking=True)
    stream.synchronize()
    out = pinned.numel() / 1e9 / (time.perf_counter() - began)
    return f"{inside:,.0f} GB/s inside, {out:.0f} GB/s into pinned memory"


def _graph(device: Any) -> str:
    import torch
    from finetooth_torch.device.graphs import CudaGraphs

    graphs, x = CudaGraphs(device), torch.ones(64, 64, device=device)
    graphs.warm(lambda: x @ x)
    y, replay = graphs.capture(lambda: x @ x)
    x.fill_(2.0)
    replay()
    if float(y[0, 0]) != 256.0:
        raise ValueError(f"a graph that is replayed gives {float(y[0, 0])} instead of 256")
    return "captured and replayed"


def _triton(device: Any) -> str:
    import torch
    import triton
    from finetooth_kernels.triton_devices import available

    if not (here := available(device, torch.bfloat16)).available:
        raise RuntimeError(here.reason)
    from finetooth_triton.layers import Layers

    x, weight = torch.randn(129, 1025, device=device, dtype=torch.bfloat16), torch.ones(1025, device=device)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    y, _ = Layers().rms_norm(x, weight.bfloat16(), 1e-6)
    far = float((y - exact).abs().max() / exact.abs().max())
    if not far < 0.01:
        raise ValueError(f"rms_norm is {far:.1e} from float64")
    return f"Triton {triton.__version__}: rms_norm {far:.1e} from float64"


def _attention(device: Any) -> str:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(2, 8, 1024, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    said = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        try:
            with sdpa_kernel([getattr(SDPBackend, name)]):
                torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
            said.append(name.partition("_")[0].lower())
        except RuntimeError:
            said.append(f"no {name.partition('_')[0].lower()}")
    return ", ".join(said)


def _eight_bits(device: Any) -> str:
    import torch
    from finetooth_kernels.fp8 import fp8_linear, multiplies_fp8

    if not multiplies_fp8(device):
        return "this card has no products in 8 bits that finetooth uses"
    x, weight = (torch.randn(33, 48, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    fp8_linear(x, weight).sum().backward()
    return "forward and both gradients"


def _groups(device: Any) -> str:
    import torch
    from finetooth_kernels.grouped import grouped_matmul

    x = torch.randn(64, 32, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 32, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
    grouped_matmul(x, weight, torch.tensor([16, 16, 40, 64], device=device, dtype=torch.int32)).sum().backward()
    return "one of them empty, forward and backward"


def _compilers(device: Any) -> str:
    return ", ".join(name if shutil.which(name) else f"no {name}" for name in ("gcc", "cc", "nvcc", "hipcc"))


CHECKS: dict[str, Callable[[Any], str]] = {
    "the card": _facts, "finetooth's hardware entry": _hardware, "compilers on the path": _compilers,
    "a product": _product, "copies": _copies, "a graph": _graph, "Triton": _triton, "torch's attention": _attention,
    "8 bits": _eight_bits, "products of groups": _groups,
}  # fmt: skip
"""What is tried, in this order."""
