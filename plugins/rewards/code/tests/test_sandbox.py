"""The sandbox by answers that try to get out of it, and by what it does where no sandbox is possible."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_code import groups
from finetooth_code import sandbox as module
from finetooth_code.confine import LANDLOCK_CREATE, LIBC
from finetooth_code.reward import CodeOptions, build
from finetooth_code.sandbox import Limits, Ran, Sandbox
from finetooth_hooks import PlanError


@pytest.fixture(scope="session")
def box() -> Sandbox:
    """A sandbox of this machine."""
    found = Sandbox(Limits(memory=256 << 20), time_limit=20.0)
    try:
        _ = found.bubblewrap
    except PlanError as error:
        pytest.skip(str(error))
    return found


def said(box: Sandbox, body: str, test: str = "raise Exception(f())") -> str:
    """What a function of this body says, or raises."""
    source = "import os\ndef f():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    return box.run(source, [test]).why


def test_right_and_wrong(box: Sandbox) -> None:
    ran = box.run("def add(a, b):\n    return a + b", ["assert add(1, 2) == 3", "assert add(1, 2) == 4"])
    assert (ran.passed, ran.total, ran.why) == (1, 2, "AssertionError")
    known = LIBC.syscall(LANDLOCK_CREATE, None, 0, 1) > 0
    kept = {"namespaces", "seccomp", "rlimits"} | ({"landlock"} if known else set())
    assert set(ran.layers) == kept | ({"cgroup"} if groups.place() else set())
    assert box.run("def add(a, b) return", ["pass"]).why.startswith("AnswerError: SyntaxError")
    assert box.run("x = 1", ["pass"], entry_point="add").why == "the answer defines no add"


def test_values_come_back_as_they_were(box: Sandbox) -> None:
    values = "(1, [2.5, None], {3: 'a', (4,): {5}}, frozenset({6}), b'\\xff', 1+2j, float('inf'), True, 10**5000)"
    assert box.run(
        "def same(x):\n    return x", [f"v = {values}; assert same(v) == v and type(same(v)) is tuple"]
    ).passed
    assert box.run(
        "def f():\n    raise KeyError('k')", ["try: f()\nexcept KeyError as e: assert e.args == ('k',)"]
    ).passed
    assert box.run("import math\ndef f(): return math.pi", ["assert f() == math.pi"]).passed


ESCAPES = {
    "fork bomb": ("while True: os.fork()", "Resource temporarily unavailable"),
    "threads": ("import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(9,)).start()",
                "RuntimeError: can't start new thread"),
    "memory": ("return len('x' * 10**10)", "MemoryError"),
    "connect": ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    "netlink": ("import socket; socket.socket(16, 3, 0)", "PermissionError"),
    "program": ("import subprocess; subprocess.run(['/usr/bin/env'])", "PermissionError"),
    "shell": ("r = os.system('true'); assert r == 0, r", "AssertionError"),
    "proc": ("os.listdir('/proc')", "FileNotFoundError"),
    "secrets": ("open('/etc/passwd')", "FileNotFoundError"),
    "system": ("open('/usr/bin/x', 'w')", "Read-only file system"),
    "root": ("open('/x', 'w')", "Read-only file system"),
    "device": ("os.mknod('/tmp/sda', 0o660 | 0o060000, os.makedev(8, 0))", "PermissionError"),
    "disk": ("for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(4 << 20))", "No space left"),
    "large file": ("open('/tmp/x', 'wb').write(bytes(64 << 20))", "File too large"),
    "memory of nobody": ("held = [os.memfd_create(str(i)) for i in range(200)]", "PermissionError"),
    "shared memory": ("import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
                      "raise OSError(ctypes.get_errno(), 's') if l.shmget(0, 1 << 28, 0o1600) < 0 else 0",
                      "PermissionError"),
    "shared mapping": ("import mmap; return len([mmap.mmap(-1, 1 << 26) for _ in range(9)])", "Cannot allocate memory"),
    "ptrace": ("import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
               "raise OSError(ctypes.get_errno(), 'p') if l.ptrace(16, 1, 0, 0) else 0", "PermissionError"),
    "namespaces": ("import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
                   "raise OSError(ctypes.get_errno(), 'u') if l.unshare(0x10000000) else 0", "PermissionError"),
    "mount": ("import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
              "raise OSError(ctypes.get_errno(), 'm') if l.mount(b't', b'/tmp', b'tmpfs', 0, 0) else 0",
              "PermissionError"),
    "identity": ("os.setuid(0)", "PermissionError"),
    "recursion": ("f()", "RecursionError"),
    "kill all": ("os.kill(1, 9); os.kill(-1, 9)", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_are_contained(box: Sandbox, name: str) -> None:
    body, why = ESCAPES[name]
    found = said(box, body)
    assert found and why in found


def test_it_is_nobody_and_sees_nothing_of_the_host(box: Sandbox, tmp_path: Path) -> None:
    """No home, no environment, no file outside of Python and the system's libraries, no link that leads out."""
    (tmp_path / "secret").write_text("s")
    body = (
        "import sys\n"
        f"os.symlink({str(tmp_path / 'secret')!r}, '/tmp/link')\n"
        f"seen = [os.path.exists(p) for p in ('/tmp/link', {str(tmp_path)!r}, {str(Path.home() / '.bashrc')!r})]\n"
        "return [os.getuid(), os.getgid(), sorted(os.environ), seen, os.listdir('/tmp'), os.path.expanduser('~')]"
    )
    seen = "[65534, 65534, ['HOME', 'LANG', 'PATH', 'TMPDIR'], [False, False, False], ['link'], '/tmp']"
    assert said(box, body) == f"Exception: {seen}"


def test_nothing_reaches_a_server_of_the_host(box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        said(box, f"import socket; socket.create_connection({server.getsockname()!r}, 1)")
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither processes nor files are left behind. The folder is this test's alone: other tests run beside it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert not list(Path(folder).glob("ft-sandbox-*"))
    assert not [pid for pid in children() if "finetooth_code.jail" in command_of(pid)]


def children() -> list[str]:
    return [each.name for each in Path("/proc").iterdir() if each.name.isdigit()]


def command_of(pid: str) -> str:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        own = status.rpartition(")")[2].split()[3] == str(os.getpid())  # its session is not ours, its parent may be
        text = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
    return text if own or str(os.getpid()) == status.rpartition(")")[2].split()[1] else ""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "body",
    ["while True: pass", "import time; time.sleep(600)", "while True: print('x' * 10**6)",
     "import signal\nsignal.pthread_sigmask(0, range(1, 64))\nwhile True: pass",
     "while os.fork(): os.setsid() if os.getpid() != os.getsid(0) else 0\nwhile True: pass"],
    ids=["loop", "sleep", "flood", "deaf", "daemons"],
)  # fmt: skip
def test_what_does_not_end_is_ended(box: Sandbox, body: str) -> None:
    began = time.monotonic()
    ran = Sandbox(box.limits, time_limit=0.6).run(
        f"import os\ndef f():\n    {body.replace(chr(10), chr(10) + '    ')}", ["f()"]
    )
    assert ran.limit == "time" or ran.passed == 0
    assert time.monotonic() - began < 60  # none of them would have ended within ten minutes


CHEATS = {
    "leaves": "import os\nos._exit(0)",
    "leaves politely": "raise SystemExit(0)",
    "equals everything": "class E:\n    def __eq__(s, o): return True\ndef f(): return E()",
    "a number that equals": """
class I(int):
    def __eq__(s, o): return True
    __hash__ = int.__hash__
def f(): return I(1)
""",
    "breaks assert": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef f(): return 0",
    "replies ahead": """
import os
os.write(41, b'{"functions": ["f"], "modules": {}}\\n' + b'{"id": 0, "value": 3}\\n' * 9)
""",
    "speaks for the sandbox": """
import os
for n in range(256):
    try: os.write(n, b'{"passed": 1, "total": 1, "why": "", "layers": []}\\n')
    except OSError: pass
def f(): return 0
""",
    "looks for the tests": """
import gc, sys
found, frame = [], sys._getframe()
while frame:
    found += [repr(v) for v in frame.f_locals.values()] + [repr(frame.f_globals)]
    frame = frame.f_back
found += [repr(o) for o in gc.get_objects() if type(o) in (dict, list)]
def f(): return 3 if any('f() ' + '== 3' in text for text in found) else 0
""",
    "pickles": "class P:\n    def __reduce__(s): return (print, ('out',))\ndef f(): return P()",
    "is named check": "def check(f): pass\ndef f(): return 0",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(box: Sandbox, name: str) -> None:
    assert box.run(CHEATS[name], ["assert f() == 3"]).passed == 0
    assert box.run(CHEATS[name], ["def check(c):\n    assert c() == 3"], entry_point="f").passed == 0


@pytest.mark.parametrize(
    ("answer", "test"),
    [
        ("def f(): return 9\ndef abs(x): return 0", "assert abs(f() - 3) < 1e-6"),
        ("def f(): return 9\ndef all(x): return True", "assert all([f() == 3])"),
        ("def f(): return 9\ndef isinstance(x, kind): return True", "assert isinstance(f(), str)"),
        ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x, [1, 2]))"),
    ],
)
def test_a_test_keeps_its_own_names(box: Sandbox, answer: str, test: str) -> None:
    assert box.run(answer, [test]).passed == 0
    assert box.run(answer, [test], entry_point="f").passed == 0


def test_a_function_may_be_asked_for_by_a_name_that_is_built_in(box: Sandbox) -> None:
    """As in MBPP, which has no entry points."""
    answer = "def half(x): return x / 2\ndef sum(a, b): return a + b"
    assert box.run(answer, ["assert sum(1, 2) == 3", "assert half(4) == 2"]).passed == 2
    assert box.run(answer, ["assert sum(1, 2) == 3"], entry_point="sum").passed == 1
    assert box.run(answer, ["assert sum([half(4), half(2)]) == 3"]).passed == 1


@pytest.mark.parametrize("answer", ["x = '\0'", "\ud800", "\0", "é = 1", "", "#" * 300_000, "(" * 3000, "1" * 5000])
def test_any_text_is_an_answer(box: Sandbox, answer: str) -> None:
    assert box.run(answer, ["assert f() == 1"]).passed == 0


def test_programs_read_and_write(box: Sandbox) -> None:
    cases = [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5", "output": "9"}, {"input": "1 1", "output": "3"}]
    ran = box.run("print(sum(map(int, input().split())))\n", cases=cases)
    assert (ran.passed, ran.total, ran.why) == (2, 3, "other output")
    large = "x" * 300_000
    assert box.run("import sys\nprint(sys.stdin.read())", cases=[{"input": large, "output": large}]).passed == 1
    assert box.run("while True: print('x' * 999)", cases=[{"input": "", "output": ""}]).why == "too much output"
    peeks = "import gc\nprint([o for o in gc.get_objects() if type(o) is dict and 'output' in o][:1])"
    assert box.run(peeks, cases=[{"input": "", "output": "3"}]).passed == 0


def test_where_no_sandbox_is_possible_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel refuses namespaces (as in a container without rights), and there is no bubblewrap."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Sandbox, "_result", lambda *given: "unshare(CLONE_NEWUSER): Operation not permitted")
    with pytest.raises(PlanError) as caught:
        build(CodeOptions())
    text = str(caught.value)
    assert "no sandbox is possible here: unshare(CLONE_NEWUSER): Operation not permitted" in text
    assert "users may make namespaces" in text and "bubblewrap" in text and "\n" not in text
    with pytest.raises(PlanError):
        Sandbox().run("x = 1", ["pass"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PlanError, match="darwin has no sandbox"):
        build(CodeOptions())


def test_a_setting_that_the_kernel_refuses_is_reported(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real refusal: a folder that cannot be mounted."""
    monkeypatch.setattr(Sandbox, "_visible", lambda self: ["/usr", "/lib", "/lib64", "/nowhere"])
    result = box._result("x = 1", {"tests": ["pass"], "entry_point": "", "cases": []}, "")
    assert isinstance(result, str) and "/nowhere" in result


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")
def test_bubblewrap_holds_too() -> None:
    bubblewrap = str(shutil.which("bwrap"))
    box = Sandbox()
    tests: dict[str, Any] = {"entry_point": "", "cases": []}
    found = box._result("def f(): return 1", {**tests, "tests": ["assert f() == 1"]}, bubblewrap)
    assert isinstance(found, Ran) and found.passed == 1
    hostile = "import os\ndef f(): return os.listdir('/proc')"
    found = box._result(hostile, {**tests, "tests": ["f()"]}, bubblewrap)
    assert isinstance(found, Ran) and found.passed == 0 and "FileNotFoundError" in found.why
    assert module.RESULT == 1 << 16


FORKS = """
pipes = []
for _ in range(4):
    read, write = os.pipe()
    if os.fork() == 0:
        kept = b"x" * (150 << 20)
        os.read(read, 1)
    pipes.append(write)
import time
time.sleep(1e6)
"""

TAKES = {
    "forks": (FORKS, "limit of memory"),
    "shared": ("import mmap\nkept = [mmap.mmap(-1, 60 << 20) for _ in range(3)]\n"
               "for n in range(3):\n    if os.fork() == 0: break\n"
               "for one in kept:\n    for n in range(60): one.write(b'x' * (1 << 20))\n"
               "import time; time.sleep(1e6)", "limit of memory"),
    "mapped": ("import mmap\nfor n in range(3):\n    if os.fork() == 0: break\n"
               "kept = [mmap.mmap(-1, 60 << 20) for _ in range(3)]\n"
               "for one in kept:\n    for n in range(60): one.write(b'x' * (1 << 20))\n"
               "import time; time.sleep(1e6)", "limit of memory"),
    "inodes": ("for n in range(5000): os.mknod(f'/tmp/{n}')", "No space left"),
    "attributes": ("open('/tmp/a', 'w').close()\nos.setxattr('/tmp/a', 'user.a', b'x')", "not permitted"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "grouped"),
    # what processes share is added up once for each of them, and the kernel counts it once
    [(name, grouped) for name in TAKES for grouped in (True, False) if not (grouped and name == "shared")],
)
def test_memory_is_bounded_for_all_processes_of_an_answer(
    box: Sandbox, name: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr(module, "place", lambda: None)
    body, expected = TAKES[name]
    assert expected in said(box, body.strip())


def test_a_control_group_never_holds_more_than_the_bound(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not between two looks either: the kernel's own count of the most that was held."""
    place = groups.place()
    if place is None:
        pytest.skip("this process may make no control group that bounds memory")
    most: list[int] = []

    def close(group: groups.Group) -> None:
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (group.folder / name).exists():
                most.append(int((group.folder / name).read_text()))
        closed(group)

    closed = groups.Group.close
    monkeypatch.setattr(groups.Group, "close", close)
    assert said(box, FORKS.strip()) == "limit of memory"
    if most:  # some kernels of version 2 do not count it
        assert 150 << 20 < max(most) <= box.limits.memory + box.limits.disk
    assert not list(place.glob(f"{groups.PREFIX}*"))


def test_where_no_control_group_can_be_made_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bounds no memory"):
        groups.Group(1 << 20, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wait", ["sleep", "fork"])
def test_whoever_asked_is_killed_and_nothing_lives_on(box: Sandbox, tmp_path: Path, wait: str) -> None:
    """kill -9 of the trainer, while an answer sleeps, alone or in a process that it started."""
    mark = f"orphan-{os.getpid()}-{wait}"
    more = "os.fork()\n    " if wait == "fork" else ""
    answer = f"import os, time\ndef f():\n    {more}time.sleep(1e6) or {mark!r}\n"
    script = tmp_path / f"{mark}.py"
    script.write_text(
        "from finetooth_code.sandbox import Limits, Sandbox\n"
        f"Sandbox(Limits(memory=256 << 20), time_limit=1e6).run({answer!r}, ['f()'])\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        while len(family := descendants(process.pid)) < (5 if wait == "fork" else 4):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    for _ in range(1200):
        if not any(Path(f"/proc/{pid}").exists() for pid in family):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {family}")


def descendants(pid: int) -> list[int]:
    """What a process started, and what that started."""
    try:
        text = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    own = [int(child) for one in text for child in one.split()]
    return [*own, *(further for child in own for further in descendants(child))]
