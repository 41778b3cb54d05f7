"""An island leaves and joins, or comes late: the others' steps and its own are those of the rule, in float64."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_diloco.first_island import FirstIslandLost
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.strategy import Diloco
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Rank
from finetooth_launching.ranks import is_failure
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from toy_engine import BEGIN, WIDTH, rows

WORLD, STEPS = 4, 9
CASE = {"steps": STEPS, "batch": 8, "options": {"inner_steps": 2, "patience": 2.0}}
HALVES = {"options": {"inner_steps": 4, "fragments": 2, "pseudo_gradient_dtype": "int8", "patience": 2.0}}
"""An exchange after every second step as well, of a half in turn, and of all after the last."""


def start(rank: int, port: int, folder: Path) -> subprocess.Popen[str]:
    script = str(Path(__file__).with_name("one_elastic.py"))
    return subprocess.Popen(
        [sys.executable, script, str(rank), str(WORLD), str(port), str(folder)], text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def oracle(
    apart: int, without: dict[int, bool], *, halves: bool = False, delay: int = 0, unsent: int = 0
) -> np.ndarray[Any, Any]:
    """The anchor at the end. `without` says of the rounds that an island does not train whether it counts among those
    that share the rows: not before the others know that it is gone. What is exchanged arrives `delay` steps later;
    in the round `unsent` the island that goes sends nothing."""
    flying: list[tuple[int, slice, np.ndarray[Any, Any]]] = []

    def arrive(number: int) -> None:
        while flying and flying[0][0] <= number:
            _, at, mean = flying.pop(0)
            momentum[at] = 0.9 * momentum[at] + mean
            anchor[at] -= 0.7 * (mean + 0.9 * momentum[at])
            own[:, at] = anchor[at]

    anchor = np.concatenate([value.ravel() for value in BEGIN.values()])
    own, first, second = np.tile(anchor, (WORLD, 1)), np.zeros((WORLD, WIDTH)), np.zeros((WORLD, WIDTH))
    momentum, lost = np.zeros(WIDTH), np.zeros((WORLD, WIDTH))
    for number, batch in enumerate(rows(STEPS, CASE["batch"]), start=1):  # type: ignore[call-overload]
        this = (number + 1) // 2
        train = [island for island in range(WORLD) if island != apart or this not in without]
        known = without.get(this, True) and number != 2 * unsent + delay
        share = train if known else list(range(WORLD))
        for island in train:
            place, gradient = share.index(island), np.zeros(WIDTH)
            for _, given, target in batch[place * 8 // len(share) : (place + 1) * 8 // len(share)]:
                gradient += (given @ own[island] - target) * given / (8 / len(share))
            first[island] = 0.9 * first[island] + 0.1 * gradient
            second[island] = 0.999 * second[island] + 0.001 * gradient**2
            size = np.sqrt(second[island] / (1 - 0.999**number)) + 1e-8
            own[island] -= 0.05 * 0.01 * own[island] + 0.05 * first[island] / (1 - 0.9**number) / size
        arrive(number)
        if number % 2 == 0 or number == STEPS:
            half = (this - 1) % 2
            at = slice(2 * half, 2 * half + 2) if halves and number < STEPS else slice(None)
            moved = anchor - own
            if halves:
                wanted = moved + lost
                scales = np.abs(wanted[:, at]).max(axis=1, keepdims=True) / 127
                moved = np.rint(wanted / scales) * scales
                lost[:, at] = (wanted - moved)[:, at]
            mean = np.mean([moved[island][at] for island in train if (this, island) != (unsent, apart)], axis=0)
            if this in without:  # the first island's weights and optimizer, and nothing that rounding took
                own[apart], first[apart], second[apart], lost[apart] = own[0], first[0], second[0], 0
            flying.append((number + delay if number < STEPS else number, at, mean))
        arrive(number)
    return anchor


LATER: dict[str, Any] = {"options": {"inner_steps": 2, "delay": 1, "patience": 2.0}}


@pytest.mark.parametrize(
    ("case", "apart", "without", "named"),
    [
        # killed behind step 3: left out after step 4, gone in steps 5 and 6, there again after step 8
        ({"dies": [2, 3], "first_waits": {"7": "back"}}, 2, {2: False, 3: True, 4: True}, 4),
        pytest.param(
            {**HALVES, "dies": [2, 3], "first_waits": {"7": "back"}},
            2,
            {2: False, 3: True, 4: True},
            4,
            marks=pytest.mark.slow,
        ),
        # late at step 4: the others train steps 5 and 6 without it, after which it is there again
        pytest.param({"late": [1, 4], "first_waits": {"5": "back"}}, 1, {2: False, 3: True}, 4, marks=pytest.mark.slow),
        # stopped behind step 3 for longer than the first island may be silent: there again after step 8
        pytest.param(
            {"hangs": [2, 3], "first_waits": {"7": "back"}}, 2, {2: False, 3: True, 4: True}, 4, marks=pytest.mark.slow
        ),
        # what is exchanged arrives a step later
        pytest.param(
            {**LATER, "dies": [2, 3], "first_waits": {"7": "back"}},
            2,
            {2: False, 3: True, 4: True},
            4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {**LATER, "late": [1, 4], "first_waits": {"5": "back"}}, 1, {2: False, 3: True}, 4, marks=pytest.mark.slow
        ),
        # killed while it sends after step 4: the others send again when it is due, and share the rows from step 6 on
        pytest.param(
            {**LATER, "sends_nothing": [2, 4], "first_waits": {"7": "back"}},
            2,
            {3: True, 4: True},
            4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "killed and started again",
        "of halves in int8",
        "late",
        "stopped",
        "killed, with a delay",
        "late, with a delay",
        "killed while it sends",
    ],
)
def test_an_island_that_is_not_there_is_left_out_and_comes_back(
    tmp_path: Path, case: dict[str, Any], apart: int, without: dict[int, bool], named: int
) -> None:
    (tmp_path / "case.json").write_text(json.dumps({**CASE, **case}), encoding="utf-8")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    islands = [start(rank, port, tmp_path) for rank in range(WORLD)]
    lost = "sends_nothing" in case
    if "dies" in case or lost:
        assert islands[apart].wait() == -9
        while not (tmp_path / "done-6").exists():
            assert islands[0].poll() is None, islands[0].communicate()[0]
        islands[apart] = start(apart, port, tmp_path)
    if "hangs" in case:
        while not (tmp_path / "done-6").exists():
            assert islands[0].poll() is None, islands[0].communicate()[0]
        time.sleep(5)
        islands[apart].send_signal(signal.SIGCONT)
    said = [island.communicate()[0] for island in islands]
    assert [island.returncode for island in islands] == [0] * WORLD, "\n".join(said)
    left = "is lost in the exchange" if lost else "is left out of the average"
    assert f"diloco: island {apart} {left} after step {named}{'' if lost else ': not there after 2 s'}" in said[0]
    assert f"diloco: island {apart} is back with the weights of all" in said[0]
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(WORLD)]
    weights = [np.concatenate([of[name].ravel() for name in BEGIN]) for of in found]
    assert all(np.array_equal(of, weights[0]) for of in weights)
    delay = case.get("options", {}).get("delay", 0)
    wanted = oracle(apart, without, halves="fragments" in case.get("options", {}), delay=delay, unsent=2 * lost)
    np.testing.assert_allclose(weights[0], wanted, atol=2e-6)


def given_up(case: dict[str, Any], folder: Path) -> tuple[list[int | None], list[str]]:
    """The codes of all islands, and what the others say who give the first one up while its process lives; it is killed
    behind them."""
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    islands = [start(rank, port, folder) for rank in range(WORLD)]
    said = [island.communicate()[0] for island in islands[1:]]
    assert islands[0].poll() is None
    islands[0].kill()
    islands[0].communicate()
    return [island.returncode for island in islands], said


@pytest.mark.slow
def test_a_first_island_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Stopped behind step 3, when the others come to the exchange after step 4: none waits longer than for an exchange,
    and the code tells a launcher that all have to begin again."""
    codes, said = given_up({**CASE, "hangs": [0, 3], "first_waits": {}}, tmp_path)
    code = FirstIslandLost.exit_code
    assert codes == [-9, code, code, code], "\n".join(said)
    assert not is_failure(code)
    for of_island in said:
        assert of_island.startswith("diloco: the first island has not answered for 2 s; "), of_island


@pytest.mark.slow
def test_a_first_island_that_answers_and_stands_still_is_given_up(tmp_path: Path) -> None:
    """It waits in step 4 for what never comes, while its store answers. The others wait as long as for an exchange."""
    _, said = given_up({**CASE, "first_waits": {"4": "never"}, "stands still": True}, tmp_path)
    for of_island in said:
        assert "FirstIslandLost: diloco: the first island (rank 0) answers, but has stood still for" in of_island


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked by /proc")
def test_islands_that_leave_listen_at_their_own_address_alone(tmp_path: Path) -> None:
    """Two that have exchanged once: the store, and gloo in the group that they made for it."""
    case = {**CASE, "first_waits": {"3": "looked"}}
    (tmp_path / "case.json").write_text(json.dumps(case), encoding="utf-8")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    islands = [start(rank, port, tmp_path) for rank in range(WORLD)]
    while not (tmp_path / "done-2").exists():
        assert islands[0].poll() is None, islands[0].communicate()[0]
    places = [place for island in islands for place in listens(island.pid)]
    (tmp_path / "looked").touch()
    said = [island.communicate()[0] for island in islands]
    assert [island.returncode for island in islands] == [0] * WORLD, "\n".join(said)
    assert port in [int(number, 16) for _, number in places]
    assert {address for address, _ in places} == {"0100007F"}


def listens(process: int) -> list[tuple[str, str]]:
    """Addresses and ports, in hexadecimal, at which a process listens."""
    files = Path(f"/proc/{process}/fd")
    own = {str(file.readlink()) for file in files.iterdir() if file.is_symlink()}
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    return [(address, number) for address, number in places]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": "deepspeed"}, "write within: ddp"),
        ({"within": {"name": "fsdp", "replicas": 2}}, "write within: ddp"),
    ],
)
def test_what_islands_that_leave_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DilocoOptions(patience=5, **options)


def test_islands_of_several_ranks_cannot_leave() -> None:
    from types import SimpleNamespace

    inner: Any = SimpleNamespace(wrap=None, digest=None, close=None)
    with pytest.raises(PlanError, match="islands of 2 ranks cannot leave and join"):
        Diloco(DilocoOptions(patience=5, num_islands=2), inner).open(Rank(0, 4, 0, "127.0.0.1", 1), "cpu")
