"""The strategy by itself; that ranks train as one process does is in tests/scale."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_ddp.strategy import slopes
from finetooth_hooks import Contribution, Datum, EngineError, LossResult, LossSpec, NotFinite
from finetooth_kit import parametrize_with_checks

DATA = [Datum.from_tokens([1, 2, 3], id="row:0"), Datum.from_tokens([4, 5], id="row:1")]
SCORES = {"logprobs": [np.array([-0.5, -1.0], np.float32), np.array([-2.0], np.float32)]}


@parametrize_with_checks("finetooth_ddp.plugin")
def test_checks(check: Any) -> None:
    check()


LISTENING = """
import os, sys
from finetooth_ddp.options import DdpOptions
from finetooth_ddp.strategy import Ddp
from finetooth_hooks.protocols import Rank
number, port = map(int, sys.argv[1:])
strategy = Ddp(DdpOptions(timeout=60))
line = strategy.open(Rank(number, 2, number, "127.0.0.1", port), "cpu")
files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
own = {os.readlink(file) for file in files if os.path.lexists(file)}
for kind in ("tcp", "tcp6"):
    for row in open(f"/proc/self/net/{kind}").readlines()[1:]:
        at, state, inode = (row.split()[place] for place in (1, 3, 9))
        if state == "0A" and f"socket:[{inode}]" in own:
            print(at)
line.barrier()
strategy.close()
"""
"""Prints where a rank listens, as the kernel has it: the address in hexadecimal, and the port."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked by /proc")
def test_ranks_of_one_machine_listen_at_its_own_address_alone() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    ranks = [
        subprocess.Popen([sys.executable, "-c", LISTENING, number, port], stdout=subprocess.PIPE, text=True)
        for number in "01"
    ]
    said = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    places = [at.split(":") for of_rank in said for at in of_rank]
    assert int(port) in [int(number, 16) for _, number in places]
    assert {address for address, _ in places} == {"0100007F"}


BUSY = """
import sys, time
from contextlib import nullcontext
from finetooth_ddp.options import DdpOptions
from finetooth_ddp.strategy import Ddp
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Rank
number, port, patient = map(int, sys.argv[1:])
strategy = Ddp(DdpOptions(timeout=30))
line = strategy.open(Rank(number, 2, number, "127.0.0.1", port), "cpu")
try:
    with line.waits() if patient else nullcontext():
        if number == 0:
            time.sleep(45)
    print(line.gather(number), end="")
except EngineError as error:
    print("lost", end="")
"""
"""The first rank is busy for longer than the other one waits for an answer."""


@pytest.mark.slow
@pytest.mark.parametrize(("patient", "said"), [("1", ["[0, 1]", "[0, 1]"]), ("0", ["lost", "lost"])])
def test_a_rank_that_is_busy_and_lives_is_waited_for(patient: str, said: list[str]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    command = [sys.executable, "-c", BUSY]
    ranks = [subprocess.Popen([*command, number, port, patient], stdout=subprocess.PIPE, text=True) for number in "01"]
    assert [rank.communicate(timeout=300)[0] for rank in ranks] == said


def squared(outputs: Any, data: Any, state: Any) -> LossResult:
    total = (torch.where(data.mask, outputs["logprobs"], 0.0).sum()) ** 2
    return LossResult({"squared": Contribution(total, "tokens")}, {}, {"seen": 1} if state is None else {})


def test_slopes_are_those_of_the_whole_step() -> None:
    """d/dx (sum x)^2 / n = 2 sum x / n, at each target."""
    totals, found = slopes(LossSpec("squared", squared), DATA, SCORES, {"tokens": 3.0}, 0)
    assert totals.contributions["squared"].total == pytest.approx(3.5**2)
    assert [array.shape for array in found] == [(2,), (1,)]
    np.testing.assert_allclose(np.concatenate(found), 2 * -3.5 / 3.0, rtol=1e-6)


def test_a_loss_that_keeps_a_state_is_refused() -> None:
    def kept(outputs: Any, data: Any, state: Any) -> LossResult:
        return LossResult(squared(outputs, data, state).contributions, {}, {"mean": 1.0})

    with pytest.raises(EngineError, match="loss kept: it keeps a state"):
        slopes(LossSpec("kept", kept), DATA, SCORES, {"tokens": 3.0}, 0)


def test_what_is_not_finite_names_the_rows() -> None:
    scores = {"logprobs": [SCORES["logprobs"][0], np.array([np.nan], np.float32)]}
    with pytest.raises(NotFinite, match="row:1"):
        slopes(LossSpec("squared", squared), DATA, scores, {"tokens": 3.0}, 0)
