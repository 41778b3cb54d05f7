"""How fast `ft` answers: whole processes, taking turns, after a warm-up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

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
    meter.write(seconds=seconds)


def once(command: list[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
