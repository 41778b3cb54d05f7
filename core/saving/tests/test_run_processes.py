"""Runs that are begun in the background: what they see of whoever begins them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from finetooth_hooks import UserError
from finetooth_saving.runs import processes


def test_a_run_has_no_secret_of_the_server_that_begins_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's keys stand in its environment, which a process inherits."""
    for name in processes.OWN:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("FT_SOMETHING", "else")
    said = "import json, os; print(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(processes, "ft", lambda *arguments: [sys.executable, "-c", said])
    assert {"FT_ENCRYPTION_KEY", "FT_API_KEY", "FT_BOARD_KEY"} <= {*processes.OWN}
    processes.begin([], tmp_path / "run")
    processes.BEGUN[-1].wait()
    seen = json.loads(processes.log_of(tmp_path / "run").read_text(encoding="utf-8"))
    assert "secret" not in seen.values() and seen["FT_SOMETHING"] == "else"


def test_the_name_of_a_run_that_was_refused_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import sys; sys.stdin.read(); print('error: ' + sys.argv[2])"
    monkeypatch.setattr(processes, "ft", lambda *arguments: [sys.executable, "-c", said, *arguments])
    folder = processes.start([], "one", name=str(tmp_path / "run"))
    processes.BEGUN[-1].wait()
    assert "error: one" in processes.output_of(folder)
    processes.start([], "two", name=str(folder))
    processes.BEGUN[-1].wait()
    assert processes.output_of(folder) == "error: two\n"
    waits = "import time; time.sleep(60)"
    monkeypatch.setattr(processes, "ft", lambda *arguments: [sys.executable, "-c", waits, *arguments])
    processes.start([], "three", name=str(folder))
    assert not processes.is_free(folder)
    processes.BEGUN[-1].kill()
    processes.BEGUN[-1].wait()
    folder.mkdir()
    with pytest.raises(UserError, match="there is a run"):
        processes.start([], "two", name=str(folder))


def test_a_process_of_a_server_that_has_ended_still_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the old server knew its process; the new one sees that the log is still written."""
    folder, go = tmp_path / "runs/mine", tmp_path / "go"
    os.mkfifo(go)
    monkeypatch.setattr(
        processes, "ft", lambda *words: [sys.executable, "-c", f"print('up'); open({str(go)!r}).read()"]
    )
    process = processes.begin([], folder)
    monkeypatch.setattr(processes, "BEGUN", [])  # the new server's
    assert not processes.is_free(folder)
    go.write_text("")
    assert process.wait() == 0
    assert processes.is_free(folder) and processes.output_of(folder) == "up\n"
