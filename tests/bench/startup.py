"""How fast `ft` answers: whole processes, interleaved, after a warm-up; written to docs/benchmarks/startup.json.

python tests/bench/startup.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGET = Path(__file__).parents[2] / "docs" / "benchmarks" / "startup.json"
FT = Path(sys.executable).with_name("ft")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ft --help": [str(FT), "--help"],
    "ft plugins list": [str(FT), "plugins", "list"],
}


def once(command: list[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    """Measure and write."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for index in range(rounds + 2):
        for name, command in COMMANDS.items():
            taken = once(command)
            if index >= 2:  # the first rounds warm the disk
                seconds[name].append(taken)
    found = {
        name: {
            "median_s": round(statistics.median(values), 4),
            "min_s": round(min(values), 4),
            "max_s": round(max(values), 4),
        }
        for name, values in seconds.items()
    }
    machine = {"python": platform.python_version(), "processors": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps({"rounds": rounds, "machine": machine, "seconds": found}, indent=2) + "\n")
    print(TARGET.read_text())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
