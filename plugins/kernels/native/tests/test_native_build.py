"""How the native kernels are compiled, kept, found again and refused.

The sources are replaced by functions that do nothing, which compile at once.
"""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_hooks import PlanError
from finetooth_native import build, provider
from finetooth_native.library import _SIGNATURES

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no native kernels on this platform")

SCRIPT = """
import sys
from pathlib import Path
from finetooth_native import build
build.SOURCES = Path(sys.argv[1])
answer = build.available()
print(answer.available, answer.reason)
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """A process that has asked for nothing, sources of its own, and an empty cache; call it to forget the answer."""
    sources = tmp_path / "sources"
    sources.mkdir()
    functions = [f'extern "C" __attribute__((visibility("default"))) void {name}() {{}}' for name in _SIGNATURES]
    numbers = ["long long ft_rms_norm_rows_a_sum() { return 32; }"]
    questions = ("ft_has_threads", "ft_mm_is_fast", "ft_mm_turns")
    numbers += [f"int {name}(int) {{ return 1; }}" for name in questions]
    functions += [f'extern "C" __attribute__((visibility("default"))) {number}' for number in numbers]
    (sources / "nothing.cpp").write_text("\n".join(functions) + "\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.delenv(build.NARROW, raising=False)
    monkeypatch.setattr(build, "_outcome", None)
    return lambda: setattr(build, "_outcome", None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How many files the compiler has compiled."""
    try:
        real = build._compiler().command
    except build._Unavailable as why:
        pytest.skip(str(why))
    log, script = tmp_path / "calls", tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\nexec {" ".join(real)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return lambda: log.read_text().count(" -c ") if log.exists() else 0


def kept() -> list[Path]:
    return sorted((Path(os.environ["FT_CACHE"]) / "native").iterdir())


def test_compiled_once(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    assert build.available().available, build.available().reason
    assert build.library() is build.library()
    assert calls() == 1
    (file,) = kept()
    assert file.suffix == ".so" and stat.S_IMODE(file.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    fresh()
    assert build.library() is not None and calls() == 1


@pytest.mark.parametrize("changed", ["source", "header", "compiler", "processor"])
def test_what_the_key_depends_on(
    changed: str, fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert build.library() is not None
    fresh()
    if changed == "source":
        with (build.SOURCES / "nothing.cpp").open("a") as source:
            source.write("// more\n")
    elif changed == "header":
        (build.SOURCES / "new.h").write_text("// more\n")
    elif changed == "compiler":
        script = tmp_path / "compiler"
        script.write_text(script.read_text().replace("exec", '[ "$1" = --version ] && { echo other 2; exit; }\nexec'))
    else:
        monkeypatch.setattr(build, "_processor", lambda: "another")
    assert build.library() is not None
    assert calls() == 2 and len(kept()) == 2


def test_a_damaged_file_is_made_again(
    fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert build.library() is not None
    (file,) = kept()
    folder = tmp_path / "other" / "native"  # at the same place the loader would give what it has loaded
    folder.mkdir(mode=0o700, parents=True)
    (folder / file.name).write_bytes(b"no library")
    (folder / file.name).chmod(0o700)
    monkeypatch.setenv("FT_CACHE", str(folder.parent))
    fresh()
    assert build.library() is not None and calls() == 2


def test_what_was_not_used_for_long_goes(fresh: Callable[[], None], calls: Callable[[], int], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    for name in ("old.so", "recent.so", "old.txt"):
        (folder / name).write_text("")
    (folder / ".compiling-old").mkdir()
    for name in ("old.so", "old.txt", ".compiling-old"):
        os.utime(folder / name, (0, 0))
    assert build.library() is not None
    assert {path.name for path in kept()} >= {"recent.so", "old.txt"} and len(kept()) == 3
    own = next(path for path in kept() if path.name not in ("recent.so", "old.txt"))
    os.utime(own, (0, 0))
    fresh()
    assert build.library() is not None and calls() == 1
    assert own.stat().st_mtime > 0, "the time says when it was used last"


def test_a_file_that_others_may_write_is_not_loaded(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    assert build.library() is not None
    (file,) = kept()
    file.chmod(0o722)
    fresh()
    assert build.library() is not None and calls() == 2
    assert stat.S_IMODE(kept()[0].stat().st_mode) == 0o700


@pytest.mark.parametrize("fault", ["owner", "writable", "link", "file"])
def test_a_cache_that_is_not_ours_alone_is_not_used(
    fault: str, fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "native"
    folder.parent.mkdir()
    if fault == "file":
        folder.write_text("not a folder")
    elif fault == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "writable" else 0o700)
    if fault == "owner":
        monkeypatch.setattr(build.os, "geteuid", lambda: folder.stat().st_uid + 1)
    answer = build.available()
    assert answer.available and "for this process only" in answer.reason and str(folder) in answer.reason
    assert calls() == 1
    assert fault == "file" or not list(folder.iterdir()), "nothing is left there"


def test_a_home_that_cannot_be_written_to(
    fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FT_CACHE")
    (tmp_path / "plain").write_text("")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "plain"))
    assert build.available().available, build.available().reason
    assert "cannot be made" in build.available().reason


def test_without_a_cache_variable(
    fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert build.library() is not None
    below = "Library/Caches" if sys.platform == "darwin" else ".cache"
    assert len(list((tmp_path / "home" / below / "finetooth" / "native").glob("*.so"))) == 1


@pytest.mark.parametrize("word", ["0", "off", "False"])
def test_switched_off(
    word: str, fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_NATIVE", word)
    assert build.library() is None and calls() == 0
    assert build.available().reason == f"native kernels are off: FT_NATIVE is {word}"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86-64")
def test_narrower_than_the_cpu(
    fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another file, compiled by other flags; the plan says so."""
    assert build.library() is not None
    fresh()
    monkeypatch.setenv("FT_NATIVE_ISA", "generic")
    assert build.library() is not None
    assert "for generic (FT_NATIVE_ISA)" in build.available().reason
    assert calls() == 2 and len(kept()) == 2
    assert "-march=x86-64 " in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("machine", "flags", "name", "said"),
    [
        ("x86_64", "avx2 bmi2 fma", "avx3", "FT_NATIVE_ISA is 'avx3', which is none of generic, avx2, avx512"),
        ("x86_64", "avx2 bmi2", "avx2", "FT_NATIVE_ISA is avx2, which needs fma of the CPU"),
        ("aarch64", "asimd", "avx2", "FT_NATIVE_ISA is avx2, which is for x86-64, and this is aarch64"),
    ],
)
def test_what_the_cpu_cannot_do_is_refused(
    machine: str, flags: str, name: str, said: str, fresh: Callable[[], None], calls: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "_processor", lambda: f"{machine} {flags}")
    monkeypatch.setenv("FT_NATIVE_ISA", name)
    assert build.library() is None and build.available().reason.endswith(said) and calls() == 0
    with pytest.raises(PlanError) as refused:
        provider.build()
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_where_there_is_a_compiler_the_sources_compile() -> None:
    """Tests of compiled kernels skip where there are none."""
    try:
        build._compiler()
    except build._Unavailable as why:
        pytest.skip(str(why))
    answer = build.available()
    assert answer.available or f"{build.SWITCH} is " in answer.reason, answer.reason


def test_no_compiler(fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.library() is None
    assert "c++, g++ or clang++ was not found" in build.available().reason
    assert "\n" not in build.available().reason


def test_sources_that_do_not_compile(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    """The compiler's own words, one line, and asked once."""
    (build.SOURCES / "wrong.cpp").write_text("int nothing() {\n  return missing;\n}\n")
    assert build.library() is None
    reason = build.available().reason
    assert "could not be compiled" in reason and "missing" in reason and "wrong.cpp:2" in reason
    assert "\n" not in reason
    count = calls()
    assert build.library() is None and calls() == count
    assert not kept(), "nothing half-made stays"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 3", "--version failed: it said nothing"),
        ('[ "$1" = --version ] && { echo mine 1; exit; }; echo "disk is full" >&2; exit 1', "disk is full"),
        ('[ "$1" = --version ] && { echo mine 1; exit; }; exit 0', "could not be"),
    ],
)
def test_a_broken_compiler(
    body: str, said: str, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "broken"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert build.library() is None
    assert said in build.available().reason and "\n" not in build.available().reason


def test_a_library_without_its_functions(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    (build.SOURCES / "nothing.cpp").write_text("int nothing;\n")
    assert build.library() is None
    assert "could not be loaded" in build.available().reason


def test_a_compiler_without_openmp(
    fresh: Callable[[], None], calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "compiler"
    script.write_text(
        script.read_text().replace(
            "exec", 'for a in "$@"; do [ "$a" = -fopenmp ] && { echo unknown >&2; exit 1; }; done\nexec'
        )
    )
    assert build.library() is not None, build.available().reason


def test_one_compilation_for_many_threads(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(build.library())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls() == 1 and len(found) == 4 and None not in found and len(set(map(id, found))) == 1


@pytest.mark.slow
def test_two_processes_at_once(fresh: Callable[[], None], calls: Callable[[], int]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(build.SOURCES)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert all(line.startswith("True") for line in said), said
    assert len(kept()) == 1


MAPS = """
import os
import torch
from finetooth_native import build as native
from finetooth_native.operations import gated

torch.set_num_threads(2)
rows = torch.ones(2000, 2000)
(rows @ rows).exp()
before = len(os.listdir("/proc/self/task"))
kernels = native.library()
gated(rows)
assert kernels.threaded, "compiled without OpenMP"
assert len(os.listdir("/proc/self/task")) == before, "the kernels started threads of their own"
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1].rpartition("/")[2]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_library_in_the_process(compiled: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", MAPS], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    libraries = [path for path in done.stdout.split() if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))]
    assert len(libraries) == 1, libraries


def test_nothing_is_compiled_for_tensors_that_kernels_cannot_read(
    fresh: Callable[[], None], calls: Callable[[], int]
) -> None:
    import torch

    assert build.library_for(torch.ones(3, dtype=torch.float64)) is None
    assert build.library_for(torch.ones(3, device="meta")) is None
    assert build.library_for(torch.ones(3), torch.ones(3, dtype=torch.bfloat16)) is None
    assert calls() == 0
    assert build.library_for(torch.ones(3)) is not None
    assert calls() == 1
