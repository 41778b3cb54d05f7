"""The inside of the sandbox: a process that makes namespaces and a file tree of its own, gives everything up, and runs
what it was sent. It is started by `sandbox` as a program, one for each answer.

In: two texts of JSON, each after its length in eight bytes: the request, and the tests, which are read only once the
answer runs in a process that has not seen them. Out: one line of JSON, the result, or `{"refused": why}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_code.confine import (
    LIBC,
    PR_SET_NO_NEW_PRIVS,
    die_with_parent,
    drop_capabilities,
    failed,
    limit_resources,
    prctl,
    restrict_calls,
    restrict_files,
)
from finetooth_code.inside import judged

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MNT_DETACH = 442, -100, 0x8000, 2
NOBODY, INODES = 65534, 4096
DEVICES = ("null", "zero", "full", "random", "urandom")


def main() -> None:
    """The program."""
    request = read()
    try:
        if request["made"]:  # bubblewrap made the namespaces and the tree
            _inside(request, root=False)
        _outside(request)
    except OSError as error:
        answer({"refused": str(error.strerror or error)})


def read() -> dict[str, Any]:
    """The next text of standard input, and not a byte more."""
    text = _exactly(int.from_bytes(_exactly(8), "big"))
    request: dict[str, Any] = json.loads(text)
    return request


def _exactly(count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = os.read(0, min(count - len(content), 1 << 16))
        if not part:
            os._exit(1)  # who asked is gone
        content += part
    return content


def answer(result: Mapping[str, Any]) -> None:
    """Say the result and end."""
    os.write(1, json.dumps(result).encode() + b"\n")
    os._exit(0)


def _outside(request: Mapping[str, Any]) -> None:
    """Fork a process with a user namespace, give it its ids, and wait until it ends. All of it ends with who asked."""
    die_with_parent()
    if os.getppid() != request["parent"]:
        os._exit(1)  # it was killed before
    ready, mapped = os.pipe(), os.pipe()
    root = os.geteuid() == 0
    inner = os.fork()
    if inner == 0:
        try:
            _between(request, ready[1], mapped[0], root=root)
        except OSError as error:
            answer({"refused": str(error.strerror or error)})
    os.close(ready[1])
    if os.read(ready[0], 1):
        _map_ids(inner, root=root)
        os.write(mapped[1], b"x")
    os.waitpid(inner, 0)
    os._exit(0)


def _map_ids(process: int, *, root: bool) -> None:
    """Root becomes nobody inside once all is set up, since the kernel limits root's processes in no way; others are
    nobody from the beginning."""
    of = Path(f"/proc/{process}")
    uid, gid = os.geteuid(), os.getegid()
    (of / "setgroups").write_text("allow" if root else "deny")
    also = f"\n{NOBODY} {NOBODY} 1" if root else ""
    (of / "gid_map").write_text(f"{0 if root else NOBODY} {gid} 1{also}")
    (of / "uid_map").write_text(f"{0 if root else NOBODY} {uid} 1{also}")


def _between(request: Mapping[str, Any], ready: int, mapped: int, *, root: bool) -> None:
    """Make the other namespaces; the first process of the new one continues, and with it all processes in it end."""
    if LIBC.unshare(NEWUSER):
        raise failed("unshare(CLONE_NEWUSER)")
    die_with_parent()
    os.write(ready, b"x")
    if not os.read(mapped, 1):
        os._exit(1)
    if LIBC.unshare(NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS):
        raise failed("unshare")
    first = os.fork()
    if first == 0:
        try:
            die_with_parent()
            _make_tree(request["staging"], request["visible"], request["limits"]["disk"])
            _inside(request, root=root)
        except OSError as error:
            answer({"refused": str(error.strerror or error)})
    os.waitpid(first, 0)
    os._exit(0)


def _inside(request: Mapping[str, Any], *, root: bool) -> None:
    """Give everything up, then judge."""
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        die_with_parent()
    drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    layers = ["namespaces", "seccomp", "rlimits"]
    sys.path[:] = [path for path in request["path"] if Path(path).exists()]
    os.environ.clear()
    os.environ.update(HOME="/tmp", PATH="/usr/bin", LANG="C.UTF-8", TMPDIR="/tmp")
    os.chdir("/tmp")
    limit_resources(request["limits"])
    if restrict_files("/tmp"):
        layers.append("landlock")
    restrict_calls()
    answer({**judged(request, read), "layers": layers})


def _make_tree(staging: str, visible: Sequence[str], disk: int) -> None:
    """A root of its own: what is `visible`, read only, a few devices, and an empty /tmp in memory; without /proc,
    /sys, /etc, and no home."""
    _mount(None, "/", None, REC | PRIVATE)
    _mount("tmpfs", staging, "tmpfs", NOSUID | NODEV, "size=256k,mode=755")
    (Path(staging) / "tmp").mkdir()
    _mount("tmpfs", f"{staging}/tmp", "tmpfs", NOSUID | NODEV, f"size={disk},nr_inodes={INODES},mode=1777")
    for path in visible:  # after /tmp, since some may lie below it
        target = Path(staging + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():
            target.symlink_to(Path(path).readlink())
            continue
        target.mkdir(exist_ok=True)
        _mount(path, str(target), None, BIND | REC)
        _freeze(str(target), devices=False)
    (Path(staging) / "dev").mkdir()
    for name in DEVICES:
        target = Path(staging, "dev", name)
        target.touch()
        _mount(f"/dev/{name}", str(target), None, BIND)
    os.chdir(staging)
    if LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."):
        raise failed("pivot_root")
    if LIBC.umount2(b".", MNT_DETACH):
        raise failed("umount2")
    os.chdir("/")
    _mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def _freeze(target: str, *, devices: bool) -> None:
    """Read only, with everything that is mounted below."""
    attributes = struct.pack("QQQQ", RDONLY | NOSUID | (0 if devices else NODEV), 0, 0, 0)
    done = LIBC.syscall(
        MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    )
    if done:
        raise failed("mount_setattr")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    if LIBC.mount(encoded(source), target.encode(), encoded(kind), ctypes.c_ulong(flags), encoded(data)):
        error = failed("mount")
        raise OSError(error.errno, f"{error.strerror} ({target})")
