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
