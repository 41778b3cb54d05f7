"""What launchers share: the interrupt key, variables, and ranks without a place. Codes and failures are tried by the
launcher `local`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from finetooth_hooks import PlanError
from finetooth_launching.ranks import RankStarter, carried, wait

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


class Told:
    """A rank that has ended once it was asked so often. Implements `Started`."""

    def __init__(self, code: int | None, looks: int = 1) -> None:
        self._codes = [*[None] * looks, code]

    def poll(self) -> int | None:
        return self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]

    def last_line(self) -> str:
        return ""

    def terminate(self) -> None: ...

    kill = terminate


@pytest.mark.parametrize(("codes", "named"), [((1, -9), 1), ((0, -9), None), ((-9, 1), 0), ((1, 1), None)])
def test_a_rank_that_was_killed_is_named_where_rank_0_ends_at_once(
    capsys: pytest.CaptureFixture[str], codes: tuple[int, int], named: int | None
) -> None:
    """Both have ended between two looks, one since it lost the other. With rank 0 done, nothing was lost; its own error
    it has told."""
    assert wait([Told(code) for code in codes], 0.1, pause=0.0) == (codes[0] if codes[0] >= 0 else 128 + 9)
    said = "" if named is None else f"rank {named} was ended by signal 9 (SIGKILL); continue with ft resume\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("codes", "said"), [((2, 2), ""), ((1, 2), "rank 1 ended with exit code 2\n")])
def test_bad_input_is_told_once(capsys: pytest.CaptureFixture[str], codes: tuple[int, int], said: str) -> None:
    """Both ranks refuse a recipe; the other looks at what only it has."""
    first, second = Told(codes[0], looks=2), Told(codes[1], looks=0)
    assert wait([first, second], 1.0, pause=0.0) == codes[0]
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("codes", "hung"), [((1, None, 1), 1), ((None, 1, 1), 0), ((0, None, 0), None)])
def test_a_rank_that_hangs_is_named(
    capsys: pytest.CaptureFixture[str], codes: tuple[int | None, ...], hung: int | None
) -> None:
    """The others gave up on it. With rank 0 done, nothing was lost."""
    wait([Told(code) for code in codes], 0.02, pause=0.001)
    said = [line for line in capsys.readouterr().err.splitlines() if "hung" in line]
    named = f"rank {hung} did not end within 0.02 s of the others and was killed: it hung; continue with ft resume"
    assert said == ([] if hung is None else [named])


@pytest.mark.parametrize(("other", "wanted"), [(2, 2), (1, 1), (3, 1)])
def test_bad_input_at_another_rank_alone_is_bad_input(other: int, wanted: int) -> None:
    """Rank 0 is asked to end meanwhile."""
    assert wait([Told(-15, looks=9), Told(other, looks=0)], 1.0, pause=0.0) == wanted


def test_a_rank_starts_no_ranks() -> None:
    class Local(RankStarter):
        name = "local"

    assert Local({}).rank() is None
    with pytest.raises(PlanError, match="this process was started as a rank, and local finds no place"):
        Local({"RANK": "0"}).rank()
