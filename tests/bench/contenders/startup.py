"""How fast `ft` answers: whole processes, taking turns, after a warm-up; and which imports take how long."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from import_times import summary
from meter import Meter

FT = str(Path(sys.executable).with_name("ft"))
ROOT = Path(__file__).resolve().parents[3]
WARM_UP = 2


def main() -> None:
    """Measure and report the seconds of every call."""
    meter = Meter()
    spec = meter.spec
    check = [FT, "check", str(ROOT / "docs/recipes/gsm8k-lora.yaml"), f"data.train={spec['rows_file']}"]
    quick = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "ft --help": [FT, "--help"],
        "ft plugins list": [FT, "plugins", "list"],
    }
    slow = {"ft check": check}
    seconds: dict[str, list[float]] = {name: [] for name in (*quick, *slow)}
    for commands, repeats, warm_up in ((quick, spec["repeats"], WARM_UP), (slow, spec["slow_repeats"], 1)):
        for index in range(repeats + warm_up):
            for name, command in commands.items():
                taken = once(command)
                if index >= warm_up:
                    seconds[name].append(round(taken, 4))
    profiled = {"ft --help": quick["ft --help"], "ft check": check}
    meter.write(
        seconds=seconds, imports={name: imports(command, spec["slow_repeats"]) for name, command in profiled.items()}
    )


def imports(command: list[str], repeats: int) -> dict[str, Any]:
    """The costliest imports of a command, from the call of which importing took least."""
    timed = [sys.executable, "-X", "importtime", *command]
    found = [summary(subprocess.run(timed, check=True, capture_output=True, text=True).stderr) for _ in range(repeats)]
    return min(found, key=lambda one: one["total_ms"])


def once(command: list[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
