"""What a device can do at most, measured on a made-up clock."""

from __future__ import annotations

from collections.abc import Sized
from types import SimpleNamespace

import pytest
from finetooth_torch.planning import peak_flops


@pytest.mark.parametrize("can", [2e9, 4e11])
@pytest.mark.parametrize("waits", [0.0, 0.008])
def test_a_busy_core_does_not_decide_the_peak(monkeypatch: pytest.MonkeyPatch, can: float, waits: float) -> None:
    """A product waits for the slice of another process, as long as Linux gives it one; the time spent is bounded."""
    now = 0.0

    def seconds(square: Sized) -> float:
        nonlocal now
        took = waits + float(2 * len(square) ** 3) / can
        now += took
        return took

    monkeypatch.setattr(peak_flops, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(peak_flops, "_seconds", seconds)
    measured = peak_flops.measured_peak.__wrapped__("cpu", "fp32", 1)
    assert can / 3 < measured <= can * (1 + 1e-9)
    assert now < peak_flops.SECONDS + 0.05
