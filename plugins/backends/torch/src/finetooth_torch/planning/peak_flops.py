"""The device's peak speed: FLOP/s of a large matrix product in a precision."""

from __future__ import annotations

import time
from functools import cache

import torch
from finetooth_hooks.protocols import HardwareFacts

from finetooth_torch.precision import DTYPES

SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices: enough to keep the device busy."""

SECONDS = 0.15
"""How long to measure; the fastest product counts, since other work can only slow one down."""

TRIES = 3
"""Products of one size before a larger one: one that waits for a busy core tells nothing."""


def peak_flops(hardware: HardwareFacts, precision: str) -> float:
    """FLOP/s from the hardware's maker, else measured, once per process."""
    return hardware.peak_flops.get(precision) or measured_peak(hardware.device, precision, torch.get_num_threads())


@cache
def measured_peak(device: str, precision: str, threads: int) -> float:
    """FLOP/s of a square product, in 0.2 s at most.

    Args:
        threads: how many compute; part of what is remembered.
    """
    del threads
    largest = SIZE.get(torch.device(device).type, 1024)
    matrix = torch.ones(largest, largest, device=device, dtype=DTYPES[precision])
    deadline = time.perf_counter() + SECONDS
    size, rate = min(256, largest), 0.0
    _seconds(matrix[:size, :size])  # the first product of a process sets things up
    while True:
        square = matrix[:size, :size].contiguous()
        for _ in range(TRIES):
            rate = max(rate, _cost(size) / _seconds(square))
            if time.perf_counter() + _cost(size) / rate > deadline:
                return rate
        # time for one larger product is enough: if another process uses a core, even a small product waits for
        # milliseconds, and its rate would be a hundredth of the device's
        if size < largest and time.perf_counter() + _cost(2 * size) / rate < deadline:
            size *= 2


def _cost(size: int) -> float:
    return 2.0 * size**3


def _seconds(square: torch.Tensor) -> float:
    waits = square.device.type != "cpu"
    if waits:
        torch.accelerator.synchronize(square.device)
    begun = time.perf_counter()
    torch.mm(square, square)
    if waits:
        torch.accelerator.synchronize(square.device)
    return max(time.perf_counter() - begun, 1e-9)
