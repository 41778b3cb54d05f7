"""A contender as a process: its answer, its failure, its memory with that of its children."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from harness.process import run

MEBIBYTE = 2**20


def script(folder: Path, text: str) -> list[str]:
    file = folder / "contender.py"
    file.write_text(f"import json, sys\nspec = json.load(open(sys.argv[1]))\n{text}\n")
    return [sys.executable, str(file)]


def finished(folder: Path, text: str, timeout: float = 60.0):
    return run(script(folder, text), {"n": 3}, timeout=timeout, environment=dict(os.environ), log=folder / "log")


ANSWER = "json.dump({'twice': 2 * spec['n'], 'began': spec['started']}, open(sys.argv[2], 'w'))"


def test_the_answer_comes_back(tmp_path):
    done = finished(tmp_path, ANSWER)
    assert done.failed == ""
    assert done.result["twice"] == 6
    assert 0 < done.wall_s < 60


def test_a_failure_is_told_by_its_last_line(tmp_path):
    done = finished(tmp_path, "print('before'); raise ValueError('no such model')")
    assert done.failed == "ValueError: no such model"
    assert done.result == {}


def test_one_that_writes_nothing_failed(tmp_path):
    assert finished(tmp_path, "print('I forgot')").failed == "I forgot"


def test_one_that_does_not_end_is_stopped(tmp_path):
    done = finished(tmp_path, "import time; time.sleep(60)", timeout=1.0)
    assert done.failed == "stopped after 1 s"
    assert done.wall_s < 30


def test_compiled_kernels_are_there_and_nothing_else_is(tmp_path):
    (tmp_path / "kept/native").mkdir(parents=True, mode=0o700)
    (tmp_path / "kept/native/one.so").write_text("compiled")
    look = "import os, pathlib; found = sorted(map(str, pathlib.Path(os.environ['FT_CACHE']).rglob('*')))"
    answer = "json.dump({'found': found, 'mode': os.stat(found[0]).st_mode & 0o777}, open(sys.argv[2], 'w'))"
    command, log = script(tmp_path, f"{look}\n{answer}"), tmp_path / "log"
    done = run(command, {}, timeout=60, environment=dict(os.environ), log=log, compiled=tmp_path / "kept")
    assert [Path(path).name for path in done.result["found"]] == ["native", "one.so"]
    assert done.result["mode"] == 0o700
    assert not Path(done.result["found"][0]).exists()  # a copy: what a contender does to it is forgotten


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_of_children_counts(tmp_path):
    child = "import time; held = bytearray(b'x') * (120 * 2**20); time.sleep(1)"
    parent = (
        f"import subprocess; held = bytearray(b'x') * (80 * 2**20); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    done = finished(tmp_path, f"{parent}\n{ANSWER}")
    assert 200 * MEBIBYTE < done.peak_rss_bytes < 300 * MEBIBYTE


def test_what_others_had_is_what_the_contender_did_not(tmp_path, monkeypatch):
    """The machine worked 7 seconds meanwhile, 4 of them for the contender."""
    from harness import process

    machine, own = iter([100.0, 107.0]), iter([20.0, 24.0])
    monkeypatch.setattr(process, "busy_s", lambda: next(machine))
    monkeypatch.setattr(process, "children_s", lambda: next(own))
    done = finished(tmp_path, ANSWER)
    assert done.others_cores == pytest.approx(3.0 / done.wall_s)


def test_the_machines_work_is_read_without_what_was_idle(tmp_path, monkeypatch):
    from harness import process

    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 8888 4 6 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    monkeypatch.setattr(process, "Path", lambda _: stat)
    monkeypatch.setattr(process.os, "sysconf", lambda _: 100)
    assert process.busy_s() == 2.0
    stat.unlink()
    assert process.busy_s() is None
