"""A control group for each answer: one bound for all memory that its processes take, kept by the kernel.

Version 2 where the own group may have groups below it, and version 1's memory controller. Where neither can be written,
the memory is added up from outside, see `sandbox.held`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

PREFIX = "finetooth-answer-"
BOUNDS = ("memory.max", "memory.limit_in_bytes")
"""Of version 2, and of version 1."""
SWAP = (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", None))
"""What swap an answer may have: none; None stands for the bound itself."""
KILLED = ("memory.events", "memory.oom_control")
"""Where the kernel counts processes that it ended for their memory."""
TOGETHER = "memory.oom.group"
"""Of version 2: all of its processes end together."""
_numbers = count()


class Group:
    """A control group with one answer in it.

    Args:
        memory: bytes.
        parent: folder of the group in which it is made.

    Raises:
        OSError: none can be made there.
    """

    def __init__(self, memory: int, parent: Path) -> None:
        self.folder = parent / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        self.folder.mkdir()
        try:
            bound = next((self.folder / name for name in BOUNDS if (self.folder / name).exists()), None)
            if bound is None:
                raise OSError(f"{parent} bounds no memory")
            bound.write_text(str(memory))
            for name, value in SWAP:
                with suppress(OSError):  # a kernel that counts no swap
                    if (self.folder / name).exists():
                        (self.folder / name).write_text(str(memory if value is None else value))
            with suppress(OSError):
                if (self.folder / TOGETHER).exists():
                    (self.folder / TOGETHER).write_text("1")
        except OSError:
            self.close()
            raise

    def add(self, process: int) -> None:
        """Put a process into it; what it starts from then on is in it too.

        Raises:
            OSError: it may not be put there.
        """
        (self.folder / "cgroup.procs").write_text(str(process))

    @property
    def hit(self) -> bool:
        """Whether the kernel ended a process because of its memory."""
        for name in KILLED:
            with suppress(OSError):
                for line in (self.folder / name).read_text().splitlines():
                    field, _, number = line.partition(" ")
                    if field == "oom_kill" and int(number):
                        return True
        return False

    def close(self) -> None:
        """End what is in it, and remove it."""
        for _ in range(200):
            with suppress(OSError):
                for process in (self.folder / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
            try:
                self.folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:  # a process is still ending
                time.sleep(0.01)


@cache
def place() -> Path | None:
    """The folder in which this process can make groups; None if there is none.

    Groups of processes that have ended are removed.
    """
    for folder in _own():
        with suppress(OSError):
            for left in folder.glob(f"{PREFIX}*"):
                if not Path("/proc", left.name.removeprefix(PREFIX).partition("-")[0]).exists():
                    with suppress(OSError):
                        left.rmdir()
            Group(1 << 30, folder).close()
            return folder
    return None


def _own() -> list[Path]:
    """Folders of the groups that this process is in and that may bound memory."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for _, mount, kind, options, *_ in mounts:
            of_two = kind == "cgroup2" and not controllers
            of_one = kind == "cgroup" and controllers == "memory" and "memory" in options.split(",")
            if of_two or of_one:
                below = Path(mount, path.lstrip("/"))
                folders.append(below if below.is_dir() else Path(mount))
    return folders
