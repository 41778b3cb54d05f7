"""How long a run will take, from operations and speed that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.data.datum import Datum
from finetooth_rows.choices.ahead import Time, device_of, time_ahead, time_line


def decided(lengths: list[int], *, steps: int | None = 10, cost: Any = None, ranks: int = 1, host: int = 8) -> Any:
    """A run with batches of two rows; a position takes 6 operations, and the device does 100 a second."""
    known = SimpleNamespace(flops=lambda of, share: 6.0 * share * sum(map(sum, of)), peak_flops=lambda: 100.0)
    data = [Datum.from_tokens([1] * (n + 1)) for n in lengths]
    hardware = SimpleNamespace(peak_flops={}, memory=8, host_memory=host, label="a device")
    report = SimpleNamespace(tokens=sum(lengths), trained_tokens=sum(lengths) // 2)
    return SimpleNamespace(
        method=SimpleNamespace(data=data),
        prepared=SimpleNamespace(total_steps=steps, report=report),
        cost=cost or known,
        plan=SimpleNamespace(train=SimpleNamespace(batch_size=2, precision="bf16")),
        request=SimpleNamespace(place=SimpleNamespace(hardware=hardware, collective=SimpleNamespace(world=ranks))),
    )


def test_operations_of_a_step_times_steps_by_the_speed() -> None:
    """Two steps of the data hold 100 positions, of which half train: 150 operations a step, 1,500 in ten."""
    time = time_ahead(decided([10, 20, 30, 40]))
    assert isinstance(time, Time)
    assert (time.flops, time.least, time.seconds, time.measured) == (1500.0, 15.0, 37.5, True)
    assert "about 37.5 s if steps run at 40 % of the device's peak speed (cpu, bf16: 1e-07 GFLOP/s" in time_line(
        time, "cpu, bf16"
    )


@pytest.mark.parametrize(("host", "least", "device"), [(8, 15.0, "a device"), (99, 3.75, "4 x a device")])
def test_ranks_share_a_step_where_each_has_a_device(host: int, least: float, device: str) -> None:
    """Four ranks on a CPU, whose memory is the machine's, compute on the one device."""
    job = decided([10, 20, 30, 40], ranks=4, host=host)
    time = time_ahead(job)
    assert isinstance(time, Time) and time.least == least
    assert device_of(job) == f"{device}, bf16"


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (decided([]), "the data are read while the run trains"),
        (decided([4], steps=None), "the number of steps is open"),
        (decided([4], cost="its layers are not known"), "its layers are not known"),
    ],
)
def test_what_is_not_known_is_said(job: Any, why: str) -> None:
    assert time_line(time_ahead(job), "cpu") == f"time: not estimated, since {why}"
