"""What a process gives up before it runs what a model wrote: capabilities, files, network, system calls, resources.

Linux's own calls, through ctypes, since this runs in an interpreter without installed packages. Each is for good: no
later call of the process, or of one that it starts, brings anything back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Mapping

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
CAPABILITY_VERSION_3, SIGKILL = 0x20080522, 9

EXECUTE, WRITE, READ, READ_DIR, MAKE_CHAR, MAKE_BLOCK = (1 << bit for bit in (0, 1, 2, 3, 6, 11))
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""By the version of Landlock the number of its file rights; 16 from 5 on."""

CALLS = {
    "x86_64": {"arch": 0xC000003E, "clone": 56, "clone3": 435, "socket": 41},
    "aarch64": {"arch": 0xC00000B7, "clone": 220, "clone3": 435, "socket": 198},
}
"""Numbers of the system calls that depend on their arguments, and of the architecture (linux/audit.h)."""

REFUSED = {
    # name: (x86_64, aarch64)
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_getfd": (438, 438), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "personality": (135, 92),
}  # fmt: skip
"""System calls that fail with EPERM: those that start programs, look into other processes, or change mounts,
namespaces or the kernel; and those that keep memory which no limit of a process counts."""

NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
AF_UNIX = 1


def prctl(option: int, value: int, more: object = 0) -> None:
    """Calls the kernel's `prctl` for this process.

    Raises:
        OSError: the kernel refused.
    """
    if LIBC.prctl(option, value, more, 0, 0):
        raise failed("prctl")


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends. A change of ids clears it.

    Raises:
        OSError: the kernel refused.
    """
    prctl(PR_SET_PDEATHSIG, SIGKILL)


def failed(call: str) -> OSError:
    """The error of the last call."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def drop_capabilities() -> None:
    """All of them, in every set."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    if LIBC.capset(header, bytes(24)):
        raise failed("capset")


def limit_resources(limits: Mapping[str, int]) -> None:
    """Limits what this process and its children can use.

    Args:
        limits: `memory` (bytes of address space), `processes`, `seconds` of CPU, `file` (bytes), `files` (open).
    """
    for kind, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def restrict_files(writable: str) -> bool:
    """Landlock: read everywhere, write below `writable` and to /dev/null, no TCP, no signals to and no abstract sockets
    of processes outside; as much of it as the kernel knows. False where it knows none."""
    version = LIBC.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = (1 << FILE_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = LIBC.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise failed("landlock_create_ruleset")
    below = rights & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK)
    for path, allowed in (("/", READ | READ_DIR), (writable, below), ("/dev/null", READ | WRITE)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if LIBC.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed & rights, place), 0):
            raise failed("landlock_add_rule")
        os.close(place)
    if LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0):
        raise failed("landlock_restrict_self")
    os.close(ruleset)
    return True


def restrict_calls() -> None:
    """Seccomp: `REFUSED` calls, new namespaces, and sockets but for those between processes fail with EPERM; those of
    another architecture kill.

    Raises:
        OSError: the kernel has no filters, or the machine's calls are not known here.
    """
    machine = platform.machine()
    if machine not in CALLS:
        raise OSError(errno.ENOSYS, f"system calls of {machine} are not known")
    numbers = CALLS[machine]
    refused = [both[0 if machine == "x86_64" else 1] for both in REFUSED.values()]
    program = _filter(numbers, refused)
    code = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, 2, whole)


def _filter(numbers: Mapping[str, int], refused: list[int]) -> bytes:
    """A program of classic BPF over `struct seccomp_data`: number at 0, architecture at 4, first argument at 16."""
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def answer(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    def unless(code: int, value: int) -> bytes:
        """The next instruction is passed over unless the comparison holds."""
        return struct.pack("HBBI", code, 0, 1, value)

    equal, at_least, has = 0x15, 0x35, 0x45
    parts = [load(4), struct.pack("HBBI", equal, 1, 0, numbers["arch"]), answer(kill), load(0)]
    parts += [unless(at_least, 0x40000000), answer(enosys)]  # the x32 calls of x86_64
    for number in refused:
        parts += [unless(equal, number), answer(eperm)]
    parts += [
        unless(equal, numbers["clone3"]),
        answer(enosys),
    ]  # its arguments cannot be seen; libc falls back on clone
    skip = struct.pack("HBBI", equal, 0, 4, numbers["clone"])
    parts += [skip, load(16), unless(has, NAMESPACES), answer(eperm), answer(allow)]
    skip = struct.pack("HBBI", equal, 0, 3, numbers["socket"])
    parts += [skip, load(16), struct.pack("HBBI", equal, 1, 0, AF_UNIX), answer(eperm)]
    return b"".join([*parts, answer(allow)])
