"""What launchers share: the interrupt key, variables, and ranks without a place. Codes and failures are tried by the
launcher `local`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from finetooth_hooks import PlanError
from finetooth_launching.ranks import RankStarter, carried

PARENT = """
import os, sys
from finetooth_launching.ranks import RankProcess, interrupts, wait
child = "import time\\ntry: print('there', flush=True); time.sleep(60)\\nexcept KeyboardInterrupt: raise SystemExit(5)"
with interrupts():
    rank = RankProcess([sys.executable, "-c", child], os.environ, None)
    raise SystemExit(wait([rank], 5.0))
"""


def test_the_interrupt_key_reaches_rank_0_and_its_code_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 5


def test_secrets_stay_here() -> None:
    given = {"HF_HOME": "/models", "HF_TOKEN": "t", "FT_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s", "PATH": "/bin"}
    assert carried(given) == {"HF_HOME": "/models"}


def test_a_rank_starts_no_ranks() -> None:
    class Local(RankStarter):
        name = "local"

    assert Local({}).rank() is None
    with pytest.raises(PlanError, match="this process was started as a rank, and local finds no place"):
        Local({"RANK": "0"}).rank()
