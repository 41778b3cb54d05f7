"""Times follow from operations and the stated speed."""

from __future__ import annotations

import pytest
from finetooth_advise.advice import ASSUMED_FLOPS, UTILISATION, advise
from finetooth_advise.made_up_machines import accelerator
from finetooth_hooks import MemoryEstimate
from finetooth_hooks.compute.ways import Way, Ways

LORA = Way("adapter", "lora", (), {"adapter": "lora"}, MemoryEstimate({"base": 10}), flops=2e9)
FULL = Way("whole", "full", (), {"adapter": "full"}, MemoryEstimate({"base": 99}), lacks="needs more")


@pytest.mark.parametrize(
    ("peak", "stated", "speed"),
    [(100e12, None, UTILISATION * 100e12), (0.0, None, ASSUMED_FLOPS), (100e12, 1e12, 1e12)],
)
def test_time_is_operations_by_the_speed(peak: float, stated: float | None, speed: float) -> None:
    advice = advise(Ways(7, accelerator(24 * 10**9), 512, peak, (FULL, LORA)), rows=50, speed=stated)
    assert advice.speed == speed and advice.seconds(LORA) == pytest.approx(50 * 2e9 / speed)
    assert advice.taken is LORA and advice.seconds(FULL) is None
