"""One contender as a process of its own: what it said, how long it took, and the most memory its processes held."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERVAL = 0.05
"""Seconds between two looks at the process tree."""


@dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes:
        result: what it wrote; empty if it failed.
        failed: the last line it printed, empty if it did not fail.
        wall_s: from start to end.
        peak_rss_bytes: the largest sum of resident memory over the process and its descendants.
        others_cores: how many of the machine's cores others had meanwhile, on average; None where nobody says.
    """

    result: Mapping[str, Any]
    failed: str
    wall_s: float
    peak_rss_bytes: int
    others_cores: float | None = None


def run(
    command: Sequence[str],
    spec: Mapping[str, Any],
    *,
    timeout: float,
    environment: Mapping[str, str],
    log: Path,
    compiled: Path | None = None,
) -> Finished:
    """Run `command SPEC RESULT` and wait.

    Args:
        spec: what the contender is told; `started` (`time.monotonic`) is added.
        timeout: in seconds; then it is killed and counts as failed.
        environment: of the process.
        log: where what it prints goes.
        compiled: cache of finetooth's compiled kernels, which this process finds as it would after its first run here;
            default: none are there.
    """
    with tempfile.TemporaryDirectory(prefix="finetooth-bench-", ignore_cleanup_errors=True) as folder:
        told, wrote = Path(folder) / "spec.json", Path(folder) / "result.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        if compiled is not None and compiled.exists():
            shutil.copytree(compiled, _empty_caches(folder)["FT_CACHE"])
        with log.open("w", encoding="utf-8") as output:
            started, busy, own = time.monotonic(), busy_s(), children_s()
            told.write_text(json.dumps({**spec, "started": started, "scratch": folder}), encoding="utf-8")
            process = subprocess.Popen(
                [*command, str(told), str(wrote)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**environment, **_empty_caches(folder)},
                start_new_session=True,
            )
            watch = Watch(process.pid)
            watch.start()
            late = _wait(process, timeout)
            wall = time.monotonic() - started
            watch.stop()
        later = busy_s()
        known = busy is not None and later is not None
        others = max(0.0, later - busy - (children_s() - own)) / wall if known else None
        if late:
            return Finished({}, f"stopped after {timeout:.0f} s", wall, watch.peak)
        if process.returncode != 0 or not wrote.exists():
            return Finished({}, _reason(process.returncode, log), wall, watch.peak)
        result = json.loads(wrote.read_text(encoding="utf-8"))
        return Finished(result, "", wall, max(watch.peak, int(result.get("max_rss_bytes", 0))), others)


def busy_s() -> float | None:
    """Seconds that all cores together have worked, or were kept from it by another machine on the same host; None
    where there is no /proc/stat."""
    try:
        times = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, irq, softirq, steal = times
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_s() -> float:
    """Seconds of the processor that children of this process had, of those that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _empty_caches(folder: str) -> dict[str, str]:
    """Variables that put caches into the folder: nobody begins with data that an earlier run prepared."""
    return {"TMPDIR": folder, "FT_CACHE": f"{folder}/prepared", "HF_DATASETS_CACHE": f"{folder}/datasets"}


def _wait(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for the end; True if it came too late and the process was killed with all its descendants."""
    try:
        process.wait(timeout)
        return False
    except subprocess.TimeoutExpired:
        kill(tree(process.pid))
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a driver cannot be killed
            process.wait(10)
        return True
    except BaseException:  # Ctrl-C: nothing stays behind
        kill(tree(process.pid))
        raise


def kill(pids: Sequence[int]) -> None:
    """End processes at once, those that still are."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reason(code: int, log: Path) -> str:
    """Why a process failed: the signal that ended it, and the last line that it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    if code >= 0:
        return last or f"exit code {code}"
    return f"ended by {signal.Signals(-code).name}" + (f"; its last line: {last}" if last else "")


class Watch(threading.Thread):
    """Looks at a process tree until told to stop. Where there is no /proc the peak stays 0 and the contender's own
    figure counts.

    Attributes:
        peak: bytes.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.peak, self._over = pid, 0, threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, sum(resident(pid) for pid in tree(self._pid)))
            self._over.wait(INTERVAL)

    def stop(self) -> None:
        """No further look."""
        self._over.set()
        self.join()


def tree(pid: int) -> list[int]:
    """A process and its descendants, as /proc says; a process that is gone has none."""
    found, open_ = [], [pid]
    while open_:
        current = open_.pop()
        found.append(current)
        try:  # it may end at any moment, and so may each of its threads
            threads = list(Path(f"/proc/{current}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                open_ += [int(child) for child in (thread / "children").read_text().split()]
            except OSError:
                continue
    return found


def resident(pid: int) -> int:
    """Resident memory of one process in bytes; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def max_rss_bytes() -> int:
    """The most this process held so far, by its own account."""
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024
