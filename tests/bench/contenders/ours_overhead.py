"""What hooks and tracking cost: a whole `session.run()`. Everything that the run loop does between the end of a step
and the beginning of the next is timed inside it: measuring the step, the method's state, trackers, plugins."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from meter import Meter
from ours import recipe

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"


def main() -> None:
    """Run and report seconds of every step and of its telling."""
    meter = Meter()
    spec = {**meter.spec, "adapter": "lora", "precision": "bf16"}
    import finetooth
    from finetooth_core.running.loop import Loop
    from finetooth_core.running.loop import Meter as StepMeter

    begins: list[float] = []
    ends: list[float] = []
    measure, tell = StepMeter.measured, Loop.tell

    def measured(self: Any, report: Any, seconds: float) -> Any:
        begins.append(time.perf_counter())
        return measure(self, report, seconds)

    def told(self: Any, report: Any) -> None:
        tell(self, report)
        ends.append(time.perf_counter())

    StepMeter.measured, Loop.tell = measured, told  # type: ignore[method-assign]
    chosen = {**recipe(spec), "trackers": ["console", "jsonl", "tensorboard"] if spec["observed"] else []}
    plugins = sorted(map(str, PLUGINS.glob("*.py"))) if spec["observed"] else []
    finetooth.session(chosen, plugins=plugins).run()
    steps = [b - a for a, b in pairwise(ends)]
    telling = [end - begin for begin, end in zip(begins, ends, strict=True)]
    # the first step also measures the device's peak, once
    meter.write(tell_s=telling[1:], step_s=steps, plugins=len(plugins))


if __name__ == "__main__":
    main()
