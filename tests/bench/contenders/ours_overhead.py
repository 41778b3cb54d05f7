"""What telling trackers and plugins costs: a whole `session.run()`, with the loop's telling timed inside it."""

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
    from finetooth_core.loop import Loop

    told: list[float] = []
    ends: list[float] = []
    tell = Loop.tell

    def timed(self: Any, report: Any) -> None:
        began = time.perf_counter()
        tell(self, report)
        ends.append(time.perf_counter())
        told.append(ends[-1] - began)

    Loop.tell = timed  # type: ignore[method-assign]
    chosen = {**recipe(spec), "trackers": ["console", "jsonl", "tensorboard"] if spec["observed"] else []}
    plugins = sorted(map(str, PLUGINS.glob("*.py"))) if spec["observed"] else []
    finetooth.session(chosen, plugins=plugins).run()
    steps = [b - a for a, b in pairwise(ends)]
    meter.write(tell_s=told[1:], step_s=steps, plugins=len(plugins))


if __name__ == "__main__":
    main()
