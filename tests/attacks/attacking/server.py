"""The server that is attacked: `ft serve api tinker openai` on a tiny model, in a process with bounded memory."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 4 * 2**30
"""Bytes of data that the server's process may have."""
FILES = 1024
"""Descriptors that it may have."""
TENANTS = ("victim", "mallory", "namesake", "careless")
"""Who is looked after, who attacks, and two more attackers: what these leave behind stands in no other attack's way."""
SECONDS = 90.0
"""For a start."""


VOCABULARY, POSITIONS = 2048, 4096
"""Of the model."""


@dataclass
class Attacked:
    """A running server.

    Args:
        place: for its folder, its log and its model.
        group: a control group (version 1 or 2) below which one with bounded memory may be made; None bounds the
            process's data instead.
        faces: that it serves.

    Attributes:
        keys: by tenant; `mallory:SCOPE` has one scope alone.
        restarts: how often it was found ended.
    """

    place: Path
    group: Path | None = None
    faces: tuple[str, ...] = ("api", "tinker", "openai")
    keys: dict[str, str] = field(default_factory=dict)
    restarts: int = 0

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder, self.log = self.place / "server", self.place / "serve.log"
        self._own_group: Path | None = None

    def prepare(self) -> None:
        """The model, and keys of all tenants."""
        from finetooth_server.keeping.records import Records
        from finetooth_server.keys import SCOPES, Keys

        _load_tests().make_model(self.place / "tiny", vocabulary=VOCABULARY, positions=POSITIONS)
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        records = Records(f"sqlite:///{self.folder / 'service.db'}")
        for tenant in TENANTS:
            self.keys[tenant] = Keys(records).create(tenant, ("train", "sample", "read", "download"))
        for scope in SCOPES[:-1]:
            self.keys[f"mallory:{scope}"] = Keys(records).create("mallory", (scope,))
        records.close()

    def start(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        command = [
            sys.executable, "-m", "finetooth", "serve", *self.faces, "--model", str(self.place / "tiny"),
            "--folder", str(self.folder), "--port", str(self.port), "--replay", "5", "--set", "train.precision=fp32",
        ]  # fmt: skip
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=self._bounded)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the server does not answer: {self.log.read_text()[-2000:]}")

    def _bounded(self) -> None:
        """In the new process, before the server begins."""
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
        if self.group is None:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            return
        join_group(self.group / f"finetooth-attacks-{os.getpid()}", MEMORY, os.getpid())

    @property
    def bound(self) -> str:
        """How its memory is bounded, in words."""
        where = "its data (RLIMIT_DATA)" if self.group is None else "its control group"
        return f"{MEMORY // 2**30} GiB for {where}, {FILES} descriptors"

    @property
    def alive(self) -> bool:
        """Whether the process that was started is still there."""
        return self.process.poll() is None

    @property
    def memory(self) -> int:
        """Resident bytes."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak(self) -> int:
        """The most resident bytes so far."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        return 1024 * int(text.partition("VmHWM:")[2].split()[0])

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ctrl-C; what does not end is killed."""
        if self.alive:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.group is not None:
            for own in self.group.glob(f"finetooth-attacks-{self.process.pid}"):
                own.rmdir()


def join_group(own: Path, memory: int, process: int) -> None:
    """Put a process into a control group with bounded memory, of version 2 or 1.

    Args:
        own: the group's folder; made if it is not there.
        memory: in bytes.

    Raises:
        RuntimeError: the folder is none that bounds memory.
    """
    own.mkdir(exist_ok=True)
    bounds = [own / name for name in ("memory.max", "memory.limit_in_bytes") if (own / name).exists()]
    if not bounds:
        raise RuntimeError(f"{own} bounds no memory: give --group a folder of the memory controller")
    for file in bounds:
        file.write_text(str(memory))
    (own / "cgroup.procs").write_text(str(process))


def _load_tests() -> Any:
    """What makes a model for the tests of load."""
    file = Path(__file__).parents[2] / "load" / "server.py"
    spec = importlib.util.spec_from_file_location("finetooth_load_server", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
