"""finetooth reads and tokenises rows: `session.job`, which holds the prepared data; twice, each in its own process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from meter import Meter


def prepare() -> None:
    """Prepare once and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth
    from finetooth_core.planning.context import RunContext

    spent: list[float] = []
    inner = RunContext.prepare

    def timed(*arguments: Any, **named: Any) -> Any:
        began = meter.now()
        try:
            return inner(*arguments, **named)
        finally:
            spent.append(meter.now() - began)

    RunContext.prepare = timed  # type: ignore[method-assign]  # the data apart from the program's start
    began = meter.now()
    session = finetooth.session(
        {
            "model": spec["model_folder"],
            "data": {"train": spec["conversations_file"], "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 16},
            "train": {"batch_size": 8, "max_length": 512, "max_steps": 1},
            "trackers": [],
            "output": str(Path(spec["scratch"]) / "run"),
        }
    )
    report = session.reports[0]
    seconds = meter.now() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    meter.write(
        seconds=seconds,
        data_s=sum(spent),
        cpu_s=sum(one.ru_utime + one.ru_stime for one in used),
        tokens=report.tokens,
        rows=report.rows,
        used=report.used,
    )


def main() -> None:
    """Once with nothing cached, once more with what the first left."""
    meter = Meter()
    found = {}
    for name in ("cold", "warm"):
        told, wrote = (Path(meter.spec["scratch"]) / f"{name}-{part}.json" for part in ("spec", "result"))
        told.write_text(json.dumps({**meter.spec, "once": True}), encoding="utf-8")
        subprocess.run([sys.executable, __file__, str(told), str(wrote)], check=True)
        found[name] = json.loads(wrote.read_text(encoding="utf-8"))
    rows = found["cold"]["rows"]
    meter.write(
        rows=rows,
        tokens=found["cold"]["tokens"],
        seconds=found["cold"]["seconds"],
        warm_s=found["warm"]["seconds"],
        data_s=found["cold"]["data_s"],
        warm_data_s=found["warm"]["data_s"],
        cpu_s=found["cold"]["cpu_s"],
        rows_per_second=rows / found["cold"]["seconds"],
    )


if __name__ == "__main__":
    prepare() if json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).get("once") else main()
