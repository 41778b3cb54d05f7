"""The sandbox, seen from outside: runs one answer, within limits, and gets a result or the limit that it hit.

Layers, each for itself enough against most of what answers do: namespaces of users, mounts, processes, network and
System V objects (unshare(2)) with a file tree that has no home, /proc, /etc or network; no capabilities; Landlock;
seccomp; resource limits; and a time limit kept from outside. Where the kernel does not let a user make namespaces,
bubblewrap is asked to, which distributions allow. Nothing runs without them.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finetooth_hooks import PlanError

from finetooth_code.groups import Group, place

RESULT = 1 << 16
"""Bytes of a result at most."""
LOOKS = 20
"""Times in a second that the memory of an answer is looked at."""
START = "import sys; sys.path.insert(0, {root!r}); from finetooth_code.jail import main; main()"
ACTION = (
    "run on Linux 5.12 or newer where users may make namespaces (sysctl kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined), install "
    "bubblewrap, or leave the reward out"
)


@dataclass(frozen=True)
class Limits:
    """What an answer may use.

    Attributes:
        memory: bytes that its processes hold together, and of address space, of each. A control group keeps the first
            bound where one can be made (with `disk` on top); else what they hold is added up `LOOKS` times a second.
        processes: processes and threads.
        seconds: of CPU, of each process.
        disk: bytes in /tmp, which is memory too.
        file: bytes of one file.
        files: open at once.
        output: bytes that a program writes.
    """

    memory: int = 512 << 20
    processes: int = 8
    seconds: int = 10
    disk: int = 16 << 20
    file: int = 16 << 20
    files: int = 64
    output: int = 1 << 20


@dataclass(frozen=True)
class Ran:
    """The result of running an answer.

    Attributes:
        passed, total: tests.
        why: the first failed.
        limit: that the answer hit: `time`, `output` or `memory`; empty if it hit none that is kept from outside.
        layers: that held it.
    """

    passed: int = 0
    total: int = 1
    why: str = ""
    limit: str = ""
    layers: tuple[str, ...] = ()


@dataclass
class Sandbox:
    """Runs answers.

    Attributes:
        limits: of each.
        time_limit: seconds of each, the start of its process included.
        packages: folders with further Python packages that answers may import.
    """

    limits: Limits = field(default_factory=Limits)
    time_limit: float = 10.0
    packages: Sequence[str] = ()

    @cached_property
    def bubblewrap(self) -> str:
        """Path of `bwrap`, if namespaces take it; empty if they do not.

        Raises:
            PlanError: no sandbox is possible here.
        """
        if sys.platform != "linux":
            raise PlanError(f"reward code_tests: {sys.platform} has no sandbox", action=ACTION)
        own = self._tried("")
        bwrap = shutil.which("bwrap") if own else None
        if own and (bwrap is None or self._tried(bwrap)):
            raise PlanError(f"reward code_tests: no sandbox is possible here: {own}", action=ACTION)
        return bwrap or ""

    def _tried(self, bubblewrap: str) -> str:
        """Why a small answer cannot be run so; empty if it can."""
        tests = {"tests": ["assert f() == 1"], "entry_point": "", "cases": []}
        result = self._result("def f(): return 1", tests, bubblewrap)
        if isinstance(result, Ran):
            return "" if result.passed == 1 else result.why or f"limit of {result.limit}"
        return result

    def run(
        self, answer: str, tests: Sequence[str] = (), *, entry_point: str = "", cases: Sequence[Mapping[str, str]] = ()
    ) -> Ran:
        """Run an answer against tests that call its functions, or as a program against cases.

        Raises:
            PlanError: the sandbox cannot be made.
        """
        checks = {"tests": list(tests), "entry_point": entry_point, "cases": [dict(case) for case in cases]}
        result = self._result(answer, checks, self.bubblewrap)
        if isinstance(result, str):
            raise PlanError(f"reward code_tests: the sandbox failed: {result}", action=ACTION)
        return result

    def _result(self, answer: str, tests: Mapping[str, Any], bubblewrap: str) -> Ran | str:
        """The result, or why there was no sandbox."""
        with tempfile.TemporaryDirectory(prefix="ft-sandbox-") as staging:
            request = {
                "answer": answer,
                "program": bool(tests["cases"]),
                "staging": staging,
                "made": bool(bubblewrap),
                "parent": os.getpid(),
                "visible": self._visible(),
                "path": [*_standard(), *self.packages],
                "limits": asdict(self.limits),
            }
            command = [*_bubblewrapped(bubblewrap, self._visible(), self.limits), *_python()]
            return self._talk(command, _framed(request) + _framed(tests))

    def _visible(self) -> list[str]:
        """Folders that answers may read: the system's libraries, Python's, and `packages`."""
        wanted = ["/usr", "/lib", "/lib64", str(Path(sys.base_prefix).resolve()), *self.packages]
        folders: list[str] = []
        for path in wanted:
            if Path(path).exists() and not any(Path(path).is_relative_to(other) for other in folders):
                folders.append(path)
        return folders

    def _talk(self, command: Sequence[str], request: bytes) -> Ran | str:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        group = self._group(process.pid)

        def takes_too_much() -> bool:
            return held(process.pid) > self.limits.memory if group is None else group.hit

        try:
            out, err, limit = _exchange(process, request, self.time_limit, takes_too_much)
            limit = limit or "memory" * (group is not None and group.hit)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if group is not None:
                group.close()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        if limit:
            return Ran(limit=limit, why=f"limit of {limit}")
        try:
            reply = json.loads(out)
            if "refused" in reply:
                return str(reply["refused"])
            layers = (*reply["layers"], *["cgroup"] * (group is not None))
            return Ran(int(reply["passed"]), int(reply["total"]), str(reply["why"]), "", layers)
        except (ValueError, KeyError, TypeError):
            if err.strip():  # the interpreter or bubblewrap itself
                return err.decode(errors="replace").strip().splitlines()[-1][:300]
            return Ran(why="the sandbox ended before it reported a result")

    def _group(self, process: int) -> Group | None:
        """The control group of an answer, which begins when it is told what to run; None where none can be made."""
        parent = place()
        if parent is None:
            return None
        group = None
        try:
            group = Group(self.limits.memory + self.limits.disk, parent)
            group.add(process)
        except OSError:
            if group is not None:
                group.close()
            return None
        return group


def _exchange(
    process: subprocess.Popen[bytes], request: bytes, time_limit: float, takes_too_much: Callable[[], bool]
) -> tuple[bytes, bytes, str]:
    """Output, errors, and the limit that was hit."""
    assert process.stdin and process.stdout and process.stderr
    deadline, received = time.monotonic() + time_limit, {"out": b"", "err": b""}
    with selectors.DefaultSelector() as pipes:
        os.set_blocking(process.stdin.fileno(), False)
        pipes.register(process.stdin, selectors.EVENT_WRITE, "in")
        pipes.register(process.stdout, selectors.EVENT_READ, "out")
        pipes.register(process.stderr, selectors.EVENT_READ, "err")
        while "out" in {key.data for key in pipes.get_map().values()}:
            left = deadline - time.monotonic()
            if left <= 0:
                return received["out"], received["err"], "time"
            if takes_too_much():
                return received["out"], received["err"], "memory"
            for key, _ in pipes.select(min(left, 1 / LOOKS)):
                if key.data == "in":
                    try:
                        request = request[os.write(key.fd, request) :]
                    except BrokenPipeError:
                        request = b""
                    if not request:
                        pipes.unregister(process.stdin)
                    continue
                part = os.read(key.fd, 65536)
                received[key.data] = (
                    received[key.data] + part if key.data == "out" else (received[key.data] + part)[-RESULT:]
                )
                if not part:
                    pipes.unregister(key.fileobj)
                if len(received["out"]) > RESULT:
                    return received["out"], received["err"], "output"
    return received["out"], received["err"], ""


def held(process: int) -> int:
    """Bytes of memory of a process and all that it started: what they wrote, and what they share, once for each."""
    total, left = 0, [process]
    while left:
        of = Path(f"/proc/{left.pop()}")
        with suppress(OSError):  # it has ended
            for line in (of / "status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) << 10
            for thread in (of / "task").iterdir():
                left += map(int, (thread / "children").read_text().split())
    return total


def _framed(what: Mapping[str, Any]) -> bytes:
    text = json.dumps(what).encode()
    return len(text).to_bytes(8, "big") + text


def _python() -> list[str]:
    """The interpreter itself, without installed packages; those of an environment need not be readable inside."""
    program = getattr(sys, "_base_executable", "") or sys.executable
    root = str(Path(__file__).resolve().parents[1])
    return [str(Path(program).resolve()), "-I", "-S", "-B", "-c", START.format(root=root)]


def _standard() -> list[str]:
    """Where the standard library lies."""
    import sysconfig

    names = ("stdlib", "platstdlib")
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    paths = [str(Path(sysconfig.get_path(name, vars=base)).resolve()) for name in names]
    return list(dict.fromkeys([*paths, f"{paths[0]}/lib-dynload"]))


def _bubblewrapped(bubblewrap: str, visible: Sequence[str], limits: Limits) -> list[str]:
    """The command that lets bubblewrap make namespaces and tree; empty without it."""
    if not bubblewrap:
        return []
    command = [bubblewrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--uid", "65534", "--gid", "65534", "--clearenv", "--dev", "/dev"]
    command += ["--size", str(limits.disk), "--tmpfs", "/tmp"]  # before what may lie below it
    for path in visible:
        linked = Path(path).is_symlink()
        command += ["--symlink", str(Path(path).readlink()), path] if linked else ["--ro-bind", path, path]
    own = str(Path(__file__).resolve().parent)
    return [*command, "--ro-bind", own, own, "--chdir", "/tmp", "--"]
