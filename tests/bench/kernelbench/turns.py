"""Contenders take turns; their times and their device memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]
MEMORY = 3
"""Runs of which the largest peak of memory is taken."""


def milliseconds(device: str, work: Callable[[], object]) -> float:
    """Time of one run, with everything it queued."""
    if device == "cpu":
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def in_turns(contenders: dict[str, Callable[[], object]], device: str, warm_up: int, timed: int) -> dict[str, Row]:
    """Median, least and greatest milliseconds of each, one run of each at a time, and peak memory beside its inputs."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    rows: dict[str, Row] = {}
    for repetition in range(warm_up + timed):
        for name, work in contenders.items():
            if name in rows:
                continue
            try:
                taken = milliseconds(device, work)
            except Exception as error:  # whatever a peer fails with is its row, not the end of the bench
                rows[name] = {"not measured": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                continue
            if repetition >= warm_up:
                times[name].append(taken)
    for name, work in contenders.items():
        if name not in rows:
            spread = {"min_ms": round(min(times[name]), 3), "max_ms": round(max(times[name]), 3)}
            rows[name] = {"ms": round(statistics.median(times[name]), 3), **spread}
            if device != "cpu":
                rows[name]["peak_mb"] = max(peak_megabytes(work) for _ in range(MEMORY))
    return rows


def peak_megabytes(work: Callable[[], object]) -> float:
    """Device memory that `work` adds at its peak to what was there, in MB (1e6 bytes)."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def print_row(row: Row) -> None:
    """One line, as soon as it is known."""
    about = ", ".join(str(value) for key, value in row.items() if key != "contenders")
    figures = "; ".join(
        f"{name} {figure.get('ms', '-')} ms {figure.get('peak_mb', '-')} MB"
        for name, figure in row["contenders"].items()
    )
    print(f"{about}: {figures}", flush=True)
