"""Ranks as processes: their places, their codes, and what is said of one that fails."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import PlanError, install_command
from finetooth_kit import parametrize_with_checks
from finetooth_locallauncher.launcher import LocalLauncher, LocalOptions


@parametrize_with_checks("finetooth_locallauncher.plugin")
def test_checks(check: Any) -> None:
    check()


def launcher(grace: float = 1.0) -> LocalLauncher:
    return LocalLauncher(LocalOptions(grace=grace), {})


def run(script: str, world: int = 2, grace: float = 1.0) -> int:
    return launcher(grace).start(
        world, [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{script}"]
    )


def test_it_finds_no_place() -> None:
    assert launcher().rank() is None
    with pytest.raises(PlanError, match=re.escape(install_command("finetooth-environmentlauncher"))):
        LocalLauncher(LocalOptions(), {"RANK": "1"}).rank()


def test_each_rank_gets_its_place_and_the_code_is_that_of_rank_0(tmp_path: Path) -> None:
    script = f"open(r'{tmp_path}/' + str(rank), 'w').write(os.environ['WORLD_SIZE'] + os.environ['MASTER_ADDR'])"
    assert run(script, world=3) == 0
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys("012", "3127.0.0.1")
    assert run("sys.exit(3 if rank == 0 else 0)") == 3


def test_a_rank_that_fails_is_named_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run("if rank == 0: time.sleep(60)\nsys.exit('error: the disk is full')", grace=0.5) == 1
    assert time.monotonic() - began < 30
    assert "rank 1 ended with exit code 1: error: the disk is full" in capfd.readouterr().err


def test_a_rank_that_is_killed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    script = "if rank == 0: time.sleep(60)\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert run(script, grace=0.5) == 1
    assert "rank 1 was ended by signal 9 (SIGKILL); continue with ft resume" in capfd.readouterr().err


def counting(tmp_path: Path, last: str) -> list[str]:
    """A stand-in for `ft run`: its ranks note how they were started, and rank 1 ends so unless it is the third time."""
    script = tmp_path / "ft.py"
    script.write_text(
        f"import os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\n"
        f"notes = pathlib.Path(r'{tmp_path}') / f'{{rank}}.txt'\n"
        "with notes.open('a') as file: file.write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"if rank == 1 and len(notes.read_text().splitlines()) < 3: {last}\n"
        "time.sleep(60 if rank == 0 and len(notes.read_text().splitlines()) < 3 else 0)\n",
        encoding="utf-8",
    )
    return [sys.executable, str(script)]


def test_a_lost_rank_starts_all_again_from_the_newest_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*counting(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"), "run", "recipe.yaml"]
    local = LocalLauncher(LocalOptions(grace=0.5, restarts=2), {})
    assert local.start(2, command) == 0
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text().splitlines() == [
            "run recipe.yaml", "run --resume recipe.yaml", "run --resume recipe.yaml",
        ]  # fmt: skip
    said = capfd.readouterr().err
    assert said.count("rank 1 was ended by signal 9") == 2 and "restart 2 of 2: all ranks begin again" in said


def test_no_more_restarts_than_asked_for_and_none_behind_bad_input(tmp_path: Path) -> None:
    kill = [*counting(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"), "resume", "mine", "--at", "3", "--quiet"]
    assert LocalLauncher(LocalOptions(grace=0.5, restarts=1), {}).start(2, kill) == 1
    assert (tmp_path / "1.txt").read_text().splitlines() == ["resume mine --at 3 --quiet", "resume mine --quiet"]
    (tmp_path / "bad").mkdir()
    assert run("sys.exit(2)", grace=0.5) == 2
    bad = [sys.executable, "-c", f"open(r'{tmp_path}/bad/' + str(__import__('time').time_ns()), 'w'); exit(2)"]
    assert LocalLauncher(LocalOptions(grace=0.5, restarts=3), {}).start(1, bad) == 2
    assert len(list((tmp_path / "bad").iterdir())) == 1


def test_a_rank_alone_is_started_again_and_at_last_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 1 is killed three times, rank 0 ends once that has happened."""
    script = (
        f"import os, pathlib, signal, sys, time\nnotes = pathlib.Path(r'{tmp_path}/notes')\nnotes.touch()\n"
        "if os.environ['RANK'] == '1':\n"
        "    with notes.open('a') as file: file.write('.')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "while len(notes.read_text()) < 3: time.sleep(0.01)\n"
        "time.sleep(1)\n"
    )
    options = LocalOptions(grace=0.5, restarts=2, restart="rank")
    assert LocalLauncher(options, {}).start(2, [sys.executable, "-c", script]) == 0
    said = capfd.readouterr().err.splitlines()
    killed = "rank 1 was ended by signal 9 (SIGKILL)"
    assert said == [
        f"{killed}; restart 1 of 2: it begins again", f"{killed}; restart 2 of 2: it begins again",
        f"{killed}; the others train on without it",
    ]  # fmt: skip
    assert LocalLauncher(options, {}).start(2, [sys.executable, "-c", script.replace("'1'", "'0'")]) == 128 + 9
    again, said = "all ranks begin again from the newest checkpoint", capfd.readouterr().err.splitlines()
    killed = "rank 0 was ended by signal 9 (SIGKILL)"
    assert said == [
        f"{killed}; restart 1 of 2: {again}", f"{killed}; restart 2 of 2: {again}", f"{killed}; continue with ft resume"
    ]  # fmt: skip
