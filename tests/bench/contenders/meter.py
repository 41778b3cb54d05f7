"""What a contender is told and what it answers: `python contender.py SPEC RESULT`, both JSON.

Stands alone: it runs in every environment, ours or a peer's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


class Meter:
    """The clock of one contender.

    Attributes:
        spec: what the contender is told. `spec["started"]` is `time.monotonic` just before the process was made, so
            that what Python and its imports take counts.
    """

    def __init__(self) -> None:
        self.spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self._began = 0.0
        self._cpu = (0.0, 0.0)
        self._ends: list[float] = []
        self._losses: list[float] = []

    def now(self) -> float:
        """Seconds since the process was made."""
        return time.monotonic() - float(self.spec["started"])

    def begin(self) -> None:
        """The first step begins; later calls change nothing."""
        if not self._began:
            self._began, self._cpu = self.now(), (processor_s(), 0.0)

    def step(self, loss: float | None) -> None:
        """A step ended."""
        self._ends.append(self.now())
        self._cpu = (self._cpu[0], processor_s())
        if loss is not None:
            self._losses.append(float(loss))

    @property
    def train_s(self) -> float:
        """Seconds from the beginning of the first step to the end of the last."""
        return self._ends[-1] - self._began

    @property
    def train_cpu_s(self) -> float:
        """The same in seconds of the processor, all threads together: others who want it too do not count."""
        return self._cpu[1] - self._cpu[0]

    def trained(
        self, *, tokens: int, positions: int, head_positions: int, pairs: float, flops: float | None = None, **more: Any
    ) -> None:
        """Write the result of a training run.

        Args:
            tokens: input tokens that are not padding, over all steps.
            positions, head_positions, pairs: see `harness.flops.Work`.
            flops: executed, where the contender counts them itself.
        """
        seconds = self.train_s
        ends = [self._began, *self._ends]
        self.write(
            first_step_s=self._ends[0],
            train_s=seconds,
            train_cpu_s=self.train_cpu_s,
            step_s=[round(b - a, 4) for a, b in pairwise(ends)],
            tokens=tokens,
            tokens_per_second=tokens / seconds,
            tokens_per_cpu_second=tokens / self.train_cpu_s if self.train_cpu_s else None,
            losses=self._losses,
            positions=positions,
            head_positions=head_positions,
            pairs=pairs,
            flops=flops,
            **more,
        )

    def write(self, **result: Any) -> None:
        """Write the result, with the process's own peak of memory and the versions of what matters."""
        found = {**result, "max_rss_bytes": max_rss(), "device_memory_bytes": device_memory()}
        found |= {"threads": threads(), "versions": versions()}
        Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


def processor_s() -> float:
    """Seconds of the processor that this process and its children that ended have had."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def threads() -> int | None:
    """How many torch computes with; None without torch."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def max_rss() -> int:
    """The most this process held so far, in bytes."""
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024


def resident() -> int:
    """What it holds now, in bytes; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def forget_peak() -> None:
    """From here on `peak_resident` counts anew, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """The most it held since `forget_peak`, in bytes."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return max_rss()


def device_memory() -> int:
    """Peak bytes of the accelerator, 0 without one."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_available() else 0


def versions() -> dict[str, str]:
    """Versions of the libraries that are loaded."""
    names = ("torch", "transformers", "trl", "peft", "datasets", "llamafactory", "numpy")
    loaded = {name: getattr(sys.modules.get(name), "__version__", "") for name in names}
    return {"python": sys.version.split()[0], **{name: str(version) for name, version in loaded.items() if version}}


def rows_digest(rows: Iterable[tuple[Sequence[int], Sequence[int]]]) -> str:
    """A hash of all rows, each the tokens of a row and the indices of the trained ones: equal, if two contenders
    trained the same.

    Tokens behind the last trained one are left out: a causal model computes nothing from them that trains, and
    contenders differ in whether they keep them.
    """
    digest = hashlib.sha256()
    for tokens, trained in rows:
        kept = [int(token) for token in tokens][: max(trained, default=-1) + 1]
        digest.update(json.dumps([kept, [int(index) for index in trained]]).encode())
    return digest.hexdigest()[:16]
