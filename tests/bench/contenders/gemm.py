"""The machine's own rate of matrix multiplication at the model's shapes: the best of several sizes."""

from __future__ import annotations

import time

from meter import Meter

SHAPES = ((2048, 576, 1536), (2048, 1536, 576), (1024, 576, 576), (1024, 576, 49152), (2048, 2048, 2048))
SECONDS = 0.6
"""How long each size is repeated."""


def main() -> None:
    """Measure and report FLOP/s by precision and shape."""
    meter = Meter()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates: dict[str, dict[str, float]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rates[precision] = {}
        for m, k, n in SHAPES:
            generator = torch.Generator(device=device).manual_seed(0)
            a = torch.randn(m, k, device=device, generator=generator).to(dtype)
            b = torch.randn(n, k, device=device, generator=generator).to(dtype)
            rates[precision][f"{m}x{k}x{n}"] = rate(a, b)
    meter.write(gemm={name: max(found.values()) for name, found in rates.items()}, shapes=rates, device=device)


def rate(a: object, b: object) -> float:
    """FLOP/s of a @ b.T, the best of repeated calls."""
    import torch
    from torch import Tensor

    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[0]
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.nn.functional.linear(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return flops / best


if __name__ == "__main__":
    main()
