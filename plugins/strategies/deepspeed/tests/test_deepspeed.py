"""The strategy by itself; that runs take the steps of one process is in tests/scale/test_deepspeed_runs.py."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_deepspeed.options import DeepspeedOptions
from finetooth_kit import parametrize_with_checks
from pydantic import ValidationError

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: make scale-test"
)


@needs_deepspeed
@parametrize_with_checks("finetooth_deepspeed.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()


def test_stage_3_is_a_strategy_of_its_own() -> None:
    with pytest.raises(ValidationError, match="write strategy: zero3"):
        DeepspeedOptions(stage=3)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("options", ["stage=1", "stage=2", "stage=2,offload"])
def test_two_ranks_update_as_adamw_does(options: str, tmp_path: Path) -> None:
    """With a lock that a killed build of DeepSpeed's operation left: nothing is built, so nothing waits for it."""
    lock = tmp_path / f"py3{sys.version_info.minor}_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    script = str(Path(__file__).with_name("one_rank_of_zero.py"))
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port, options],
            env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert list(lock.parent.iterdir()) == [lock]
