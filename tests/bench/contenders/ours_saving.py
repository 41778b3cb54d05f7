"""What saving in the background costs: a whole run, from the end of its first step until its last state is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from meter import Meter
from ours import recipe


def main() -> None:
    """Run and report."""
    meter = Meter()
    spec = {**meter.spec, "adapter": "lora", "precision": "bf16"}
    import finetooth
    from finetooth_core.running.loop import Loop

    ends: list[float] = []
    tokens: list[int] = []
    kept: list[float] = []
    tell, keep_state = Loop.tell, Loop.keep_state

    def told(self: Any, report: Any) -> None:
        tell(self, report)
        ends.append(time.perf_counter())
        tokens.append(report.tokens)

    def state_kept(self: Any, ending: Any) -> Any:
        found = keep_state(self, ending)
        kept.append(time.perf_counter())
        return found

    Loop.tell, Loop.keep_state = told, state_kept  # type: ignore[method-assign]
    every = spec["every"] if spec["saves"] else 0
    session = finetooth.session({**recipe(spec), "checkpoint": {"every": every, "keep_last": 2}})
    session.run()
    seconds = kept[0] - ends[0]
    saved = sorted((Path(session.folder) / "checkpoints").glob("step-*"))
    files = [path for folder in saved[:1] for path in folder.rglob("*") if path.is_file()]
    meter.write(
        train_s=seconds,
        tokens_per_second=sum(tokens[1:]) / seconds,
        steps=len(tokens),
        saves=len(tokens) // every if every else 0,
        checkpoint_bytes=sum(path.stat().st_size for path in files),
    )


if __name__ == "__main__":
    main()
