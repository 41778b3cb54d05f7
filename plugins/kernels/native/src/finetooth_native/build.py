"""Compile the C++ sources in this package's source folder, keep the result, and load it.

A compiled file is found again by its key: the sources, the flags, the compiler's version, what the CPU can do, and
which OpenMP library torch brought. It lies in ``FT_CACHE/native``, or ``finetooth/native`` in the platform's cache
folder, which must belong to the user and be writable by nobody else, since what lies there is run.

There is one OpenMP library in a process, torch's: two of them keep a pool of threads each, and they fight for the
cores.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from finetooth_kernels.compiled import Compiled
from finetooth_kernels.contract import Availability
from torch import Tensor

from finetooth_native.library import ALONE_UP_TO, Library, readable

__all__ = ["COMPILED", "NARROW", "NARROWER", "SWITCH", "available", "library", "library_for", "wrong_isa"]

SWITCH = "FT_NATIVE"
"""Set to 0, this variable turns the compiled kernels off."""

NARROW = "FT_NATIVE_ISA"
"""Set to a name in `NARROWER`, this variable compiles for CPUs that can do less than this one."""

NARROWER = {
    "generic": (("-march=x86-64",), frozenset()),
    # tuned for CPUs that end there, where compilers fuse fewer products with sums
    "avx2": (("-march=haswell", "-mtune=znver2"), frozenset({"avx2", "bmi2", "fma"})),
    "avx512": (
        ("-march=skylake-avx512",), frozenset({"avx512bw", "avx512dq", "avx512f", "avx512vl", "bmi2", "fma"}),
    ),
}  # fmt: skip
"""The compiler's flags by name, and the processor's flags that such code needs."""

VARIABLE = "FT_CACHE"
"""The folder where finetooth keeps what it can make again."""

ABI_VERSION = 1
"""Counts changes of how this file and `library.py` build and call, where the sources stay as they are."""

COMPILE_SECONDS = 300
"""A compiler that takes longer than this hangs."""

KEPT_SECONDS = 90 * 24 * 3600
"""How long a compiled file is kept after it was last used."""

SOURCES = Path(__file__).parent / "sources"

LEVELS = {"attention": ("-O2", "-ftree-vectorize")}
"""What other sources than usual (`-O3`) are optimised with: attention unrolls its loops itself, and -O3 takes twice as
long for the same speed."""

UNFINISHED = ".compiling-"


class _Unavailable(Exception):
    """Why compiled kernels are missing, in one line."""


@dataclass(frozen=True)
class _Outcome:
    library: Library | None
    reason: str


@dataclass(frozen=True)
class _Compiler:
    """A command, and what it says it is."""

    command: tuple[str, ...]
    version: str

    @property
    def is_clang(self) -> bool:
        return "clang" in self.version.lower()


_lock = Lock()
_outcome: _Outcome | None = None


def library() -> Library | None:
    """The compiled kernels; None where there are none, for the reason that `available` states.

    The first call in a process loads them, and compiles them if that was never done on this machine (seconds). A
    failure is not tried again.
    """
    return (_outcome or _settled()).library


def library_for(*tensors: Tensor, strided: bool = False) -> Library | None:
    """The compiled kernels if they can read all these tensors; None otherwise.

    Nothing is compiled for a process that never asks with such tensors.

    Args:
        strided: the kernel in question takes numbers that lie apart, in any strides.
    """
    if not readable(*tensors, strided=strided):
        return None
    kernels = library()
    if kernels is None or not (kernels.threaded or torch.get_num_threads() <= ALONE_UP_TO):
        return None
    return kernels


COMPILED = Compiled(library_for, readable)
"""What operations of `finetooth_kernels` are given."""


def available() -> Availability:
    """Whether there are compiled kernels, and from where, or why not."""
    outcome = _outcome or _settled()
    return Availability(outcome.library is not None, outcome.reason)


def _settled() -> _Outcome:
    global _outcome
    with _lock:
        if _outcome is None:
            try:
                _outcome = _build_outcome()
            except _Unavailable as why:
                _outcome = _Outcome(None, str(why))
            except (OSError, subprocess.SubprocessError) as why:
                _outcome = _Outcome(None, f"native kernels could not be compiled: {_first_line(str(why))}")
        return _outcome


def _build_outcome() -> _Outcome:
    if os.environ.get(SWITCH, "").strip().lower() in ("0", "off", "false", "no"):
        return _Outcome(None, f"native kernels are off: {SWITCH} is {os.environ[SWITCH]}")
    if sys.platform not in ("linux", "darwin"):
        return _Outcome(None, f"native kernels are for Linux and macOS, this is {sys.platform}")
    if wrong := wrong_isa():
        raise _Unavailable(f"native kernels cannot be compiled: {wrong}")
    compiler = _compiler()
    runtime = _openmp_library()
    threads = _thread_flags(compiler, runtime)
    name = f"{_key(compiler, threads, runtime)}.so"
    narrow = os.environ.get(NARROW)
    made = f"compiled by {compiler.version}{f' for {narrow} ({NARROW})' if narrow else ''}"
    try:
        folder = _cache_folder()
    except _Unavailable as why:  # still worth compiling, for this process alone
        with tempfile.TemporaryDirectory(prefix="finetooth-native-") as scratch:
            path = Path(scratch) / name
            _compile(compiler, threads, runtime, path)
            return _Outcome(_loaded(path), f"{made}, for this process only: {why}")
    path, reason = folder / name, f"{made}, kept in {folder}"
    if _is_private(path, stat.S_ISREG):
        with suppress(_Unavailable):  # a damaged file is made again
            kernels = _loaded(path)
            os.utime(path)
            return _Outcome(kernels, reason)
    _compile(compiler, threads, runtime, path)
    _forget_unused(folder)
    return _Outcome(_loaded(path), reason)


def _forget_unused(folder: Path) -> None:
    """Remove what nobody has used for long: other versions' files, and what was being compiled when a process died."""
    for path in folder.iterdir():
        with suppress(OSError):  # gone meanwhile
            if time.time() - path.lstat().st_mtime < KEPT_SECONDS:
                continue
            if path.name.startswith(UNFINISHED):
                shutil.rmtree(path)
            elif path.suffix == ".so":
                path.unlink()


def _loaded(path: Path) -> Library:
    try:
        return Library(path)
    except (OSError, AttributeError) as why:
        raise _Unavailable(f"native kernels could not be loaded: {_first_line(str(why))}") from why


def _compiler() -> _Compiler:
    """`CXX`, or the first of the usual names that is there."""
    cxx = os.environ.get("CXX", "").strip()
    commands = [tuple(shlex.split(cxx))] if cxx else [(name,) for name in ("c++", "g++", "clang++")]
    for command in commands:
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
        version = done.stdout.strip()
        if done.returncode or not version:
            raise _Unavailable(
                f"native kernels need a C++ compiler; {shlex.join(command)} --version failed: {_complaint(done.stderr)}"
            )
        return _Compiler(command, _first_line(version))
    names = cxx or "c++, g++ or clang++"
    raise _Unavailable(f"native kernels need a C++ compiler; {names} was not found (set CXX, or install one)")


def _openmp_library() -> Path | None:
    """The OpenMP library that torch brought into this process; None where it cannot be seen."""
    _ = torch.get_num_threads()  # torch is what loads it
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for line in maps.read_text(errors="replace").splitlines():
        path = line.partition("/")[1:]
        if re.match(r"lib(gomp|i?omp5?)[-.]", Path("".join(path)).name):
            return Path("".join(path))
    return None


def _thread_flags(compiler: _Compiler, runtime: Path | None) -> tuple[str, ...]:
    """`-fopenmp`, unless it would bring a second OpenMP library into the process or is refused.

    Clang's code calls LLVM's library, which GNU's cannot stand in for; the other way round works.
    """
    if compiler.is_clang and runtime is not None and "gomp" in runtime.name:
        return ()
    program = "#ifndef _OPENMP\n#error no OpenMP\n#endif\n"
    command = [*compiler.command, "-fopenmp", "-x", "c++", "-fsyntax-only", "-"]
    trial = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=False)
    return ("-fopenmp",) if trial.returncode == 0 else ()


def wrong_isa() -> str:
    """What is wrong with `FT_NATIVE_ISA`, in one line; empty where nothing is."""
    name = os.environ.get(NARROW, "")
    if not name:
        return ""
    if name not in NARROWER:
        return f"{NARROW} is {name!r}, which is none of {', '.join(NARROWER)}"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"{NARROW} is {name}, which is for x86-64, and this is {platform.machine()}"
    lacking = NARROWER[name][1].difference(_processor().split())
    return f"{NARROW} is {name}, which needs {', '.join(sorted(lacking))} of the CPU" if lacking else ""


def _flags() -> tuple[str, ...]:
    """How every source is compiled. Not `-ffast-math`: NaN and infinity must come through. What is fused, the sources
    say themselves."""
    narrow = os.environ.get(NARROW)
    cpu = ["-mcpu=native"]
    if platform.machine() not in ("arm64", "aarch64"):
        # compilers would use half of the widest registers, which our products fill anyway
        cpu = [*(NARROWER[narrow][0] if narrow else ["-march=native"]), "-mprefer-vector-width=512"]
    return (
        *cpu, "-std=c++17", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
        "-ffp-contract=off", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    )  # fmt: skip


def _key(compiler: _Compiler, threads: tuple[str, ...], runtime: Path | None) -> str:
    digest = hashlib.sha256()
    stated = [str(ABI_VERSION), str(LEVELS), *compiler.command, compiler.version, *_flags(), *threads, _processor()]
    stated.append("" if runtime is None else runtime.name)
    for part in stated:
        digest.update(part.encode() + b"\0")
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        content = source.read_bytes()
        digest.update(f"{source.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@cache
def _processor() -> str:
    """What the CPU can do: code for one that can more would stop the process."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                return platform.machine() + line.partition(":")[2]
    return f"{platform.machine()} {platform.processor()}"


def _cache_folder() -> Path:
    """Where compiled files are kept, made if need be.

    Raises:
        _Unavailable: it cannot be made, or somebody else could have put something there.
    """
    configured = os.environ.get(VARIABLE)
    if configured:
        base = Path(configured).expanduser().absolute()
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "finetooth"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetooth"
    folder = base / "native"
    try:
        base.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, RuntimeError) as why:
        raise _Unavailable(f"{folder} cannot be made ({_first_line(str(why))})") from why
    if not _is_private(folder, stat.S_ISDIR):
        raise _Unavailable(f"{folder} belongs to somebody else or others may write there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _Unavailable(f"{folder} cannot be written to")
    return folder


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is there, of that kind, ours, and writable by nobody else."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return is_kind(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def _compile(compiler: _Compiler, threads: tuple[str, ...], runtime: Path | None, path: Path) -> None:
    """Make `path`, whole or not at all, even if another process makes it at the same time.

    Raises:
        _Unavailable: what the compiler complains about.
    """
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as scratch:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        flags = (*_flags(), *threads)
        _all_done(
            [
                [*compiler.command, *LEVELS.get(source.stem, ("-O3",)), *flags, "-c", str(source), "-o", str(target)]
                for source, target in zip(sources, objects, strict=True)
            ]
        )
        made = Path(scratch) / f"{secrets.token_hex(4)}.so"
        # by path, and only if something calls it: so the file asks for the OpenMP library that is there already
        openmp = [str(runtime)] if threads and runtime is not None else list(threads)
        _all_done([[*compiler.command, "-shared", *map(str, objects), *openmp, "-o", str(made)]])
        made.chmod(0o700)
        made.replace(path)


def _all_done(commands: list[list[str]]) -> None:
    """Run commands at the same time."""
    running = [
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    try:
        complaints = [(process, process.communicate(timeout=COMPILE_SECONDS)[1]) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for process, complaint in complaints:
        if process.returncode:
            raise _Unavailable(f"native kernels could not be compiled: {_complaint(complaint)}")


def _complaint(errors: str) -> str:
    """The line that says what is wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it said nothing")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
