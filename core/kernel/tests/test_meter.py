"""What the loop measures of a step."""

from __future__ import annotations

from dataclasses import replace

from finetooth_core.running.meter import Meter
from finetooth_hooks import (
    StepReport,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.engine import Usage


class MeteredEngine(EngineBase):
    """Knows its memory and what it can do."""

    capabilities = frozenset({"usage"})

    asked = 0

    def usage(self) -> Usage:
        return Usage(memory=5, peak_memory=7, metrics={"memory/max_reserved": 9.0})

    def peak_flops(self) -> float:
        self.asked += 1
        return 1000.0


def test_a_step_is_measured() -> None:
    engine = MeteredEngine()
    meter = Meter(engine)  # type: ignore[arg-type]
    report = StepReport(1, 0.1, 2.0, 80, 4, 2, 1e-3, 0.5, flops=800.0, metrics={"kl": 1.0})
    measured = meter.measured(report, 2.0)
    assert (measured.seconds, measured.tokens_per_second) == (2.0, 40.0)
    assert (measured.flops_per_second, measured.mfu) == (400.0, 0.4)
    assert (measured.memory, measured.memory_now) == (7, 5)
    assert measured.metrics == {"kl": 1.0, "memory/max_reserved": 9.0}
    assert meter.measured(report, 0.1).mfu == 0.0  # the peak was measured too low, so it is not known
    assert meter.measured(report, 2.0).mfu == 0.0
    assert engine.asked == 1


def test_without_a_meter_or_flops_there_is_no_utilisation() -> None:
    report = StepReport(1, 0.1, 2.0, 80, 4, 2, 1e-3, 0.5)
    engine = MeteredEngine()
    assert Meter(engine).measured(report, 2.0).mfu == 0.0  # type: ignore[arg-type]
    assert engine.asked == 0
    plain = Meter(EngineBase()).measured(replace(report, flops=8.0), 2.0)  # type: ignore[arg-type]
    assert (plain.mfu, plain.flops_per_second, plain.memory, plain.memory_now) == (0.0, 4.0, 0, 0)
