"""The small native kernels: what compiling them costs a machine once, and what loading them costs every run after.

With `spec["keep"]`, a folder, they are only compiled, into that folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from meter import Meter

CACHE = "FT_CACHE"
"""The variable that names the folder in which compiled kernels are kept."""


def load() -> dict[str, Any]:
    """Load the kernels in this process, compiling them if the cache lacks them: `seconds`, or `reason` if they cannot
    be had."""
    try:
        from finetooth_native import build as native
    except ImportError:
        return {"reason": "this version has no native kernels"}
    started = time.perf_counter()
    library = native.library()
    seconds = time.perf_counter() - started
    if library is None:
        return {"reason": str(native.available().reason)}
    return {"seconds": seconds}


def elsewhere(folder: str) -> dict[str, Any]:
    """`load` in a process of its own with this cache."""
    command = [sys.executable, __file__, "load"]
    done = subprocess.run(command, env={**os.environ, CACHE: folder}, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Compile into an empty cache, load from it, and report both."""
    meter = Meter()
    if meter.spec.get("keep"):
        meter.write(native=elsewhere(meter.spec["keep"]))
        return
    cache = Path(meter.spec["scratch"]) / "native"
    cache.mkdir(mode=0o700)
    first = elsewhere(str(cache))
    if "reason" in first:
        meter.write(native=first)
        return
    meter.write(native={"compile_s": first["seconds"], "load_s": elsewhere(str(cache)).get("seconds")})


if __name__ == "__main__":
    if sys.argv[1:] == ["load"]:
        print(json.dumps(load()))
    else:
        main()
