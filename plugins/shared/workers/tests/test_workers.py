"""Worker processes: functions that raise, hang, die, and print, and requests in their order."""

from __future__ import annotations

import os
import py_compile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_workers.modules import loaded_file
from finetooth_workers.workers import Failure, WorkerError, Workers

MODULE = """
import os, sys, time

def build(word):
    if word == "broken":
        raise ValueError("no such word")
    def function(request):
        print("this is no reply")
        if request == "raise":
            raise KeyError("x")
        if request == "hang":
            time.sleep(600)
        if str(request).endswith("/pid"):
            import subprocess
            started = subprocess.Popen(["sleep", "600"])
            open(request, "w").write(str(started.pid))
            started.wait()
        if request == "die":
            os._exit(7)
        if request == "leave":
            sys.exit(3)
        if request == "object":
            return object()
        return [word, request, os.getpid()]
    return function
"""


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Workers]]:
    (tmp_path / "of_this_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made: list[Workers] = []

    def make(word: str = "w", **options: Any) -> Workers:
        made.append(Workers("of_this_test:build", {"word": word}, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_values_come_in_the_order_of_requests(workers: Any) -> None:
    many = workers(count=2)
    found = many(list(range(20)))
    assert [value[:2] for value in found] == [["w", i] for i in range(20)]
    assert {value[2] for value in many(["a", "b"])} <= {one.process.pid for one in many._alive}
    assert many([]) == []


def test_what_fails_is_said_and_the_rest_goes_on(workers: Any) -> None:
    found = workers(time_limit=0.5)(["raise", 1, "hang", 2, "die", 3, "object", 4, "leave", 5])
    kinds = [one.kind if isinstance(one, Failure) else one[1] for one in found]
    assert kinds == ["raised", 1, "time", 2, "died", 3, "raised", 4, "died", 5]
    assert found[0].text.startswith("KeyError: 'x' (of_this_test.py:")
    assert found[2].text == "took longer than 0.5 seconds" and found[4].text == "ended its process with exit code 7"
    assert len({found[i][2] for i in (1, 3, 5)}) == 3 and found[5][2] == found[7][2]


def test_a_function_that_cannot_be_built_is_said(workers: Any) -> None:
    with pytest.raises(WorkerError, match="ValueError: no such word"):
        workers("broken")([1])


def test_workers_end_with_who_asks(workers: Any) -> None:
    one = workers()
    pid = one([1])[0][2]
    one.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_a_late_function_started_ends_with_it(workers: Any, tmp_path: Path) -> None:
    """A compiler, say, that it waits for."""
    (late,) = workers(time_limit=1.0)([str(tmp_path / "pid")])
    assert late.kind == "time"
    started = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 30
    while started.exists() and "Z" not in (started / "stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_compiled_code_is_not_loaded(tmp_path: Path) -> None:
    """Consent to the code of a run folder is asked for `.py` files."""
    (tmp_path / "ran.py").write_text("raise SystemExit")
    compiled = py_compile.compile(str(tmp_path / "ran.py"), cfile=str(tmp_path / "own.pyc"))
    with pytest.raises(ValueError, match="is not a Python file"):
        loaded_file(Path(str(compiled)))
