"""Islands as processes over gloo take the steps of the paper's algorithm, computed in float64 without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.strategy import Diloco
from finetooth_diloco.traffic import traffic
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Rank, Traffic
from finetooth_kit import parametrize_with_checks
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from toy_engine import BEGIN, WIDTH, rows

PLAIN = {"inner_steps": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
CASE = {"steps": 7, "batch": 8, "optimizer": "adamw", "rate": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "paper": {**CASE, "options": {"inner_steps": 3}},
    "nesterov": {**CASE, "optimizer": "sgd", "options": {"inner_steps": 2, "outer_lr": 0.5, "outer_momentum": 0.8}},
    "averages": {**CASE, "optimizer": "sgd", "options": {**PLAIN, "inner_steps": 2}},
    "ddp": {**CASE, "optimizer": "sgd", "batch": 7, "options": PLAIN},
    "bf16": {**CASE, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "bf16"}},
    "fp16": {**CASE, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "fp16"}},
    "int8": {**CASE, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "int8"}},
    "two": {**CASE, "options": {"inner_steps": 3, "num_islands": 2}},
    "int4": {**CASE, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "int4"}},
    "whole": {**CASE, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "int8"}},
    "int4 by fragments": {
        **CASE,
        "options": {"inner_steps": 4, "fragments": 2, "delay": 1, "mixing": 0.5, "pseudo_gradient_dtype": "int4"},
    },
    "fragments": {**CASE, "options": {"inner_steps": 4, "fragments": 2, "mixing": 0.25}},
    "streamed": {**CASE, "options": {"inner_steps": 4, "fragments": 2, "delay": 1, "mixing": 0.5}},
    "streamed again": {
        **CASE,
        "stop": 4,
        "options": {"inner_steps": 4, "fragments": 2, "delay": 1, "mixing": 0.5},
    },
    "fragments again": {
        **CASE,
        "stop": 4,
        "options": {"inner_steps": 4, "fragments": 2, "delay": 1, "mixing": 0.5, "pseudo_gradient_dtype": "int4"},
    },
    "resumed": {**CASE, "stop": 5, "options": {"inner_steps": 2, "pseudo_gradient_dtype": "int8"}},
}
"""The last batch of no case is special; seven steps end in the middle of a round."""
AGAIN = {"resumed": "whole", "streamed again": "streamed", "fragments again": "int4 by fragments"}
"""Cases that are saved and resumed, and the unbroken ones."""


@parametrize_with_checks("finetooth_diloco.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All cases, by as many processes: how many, and the folder with what each came to."""
    world, folder = request.param, tmp_path_factory.mktemp("islands")
    (folder / "cases.json").write_text(json.dumps(CASES), encoding="utf-8")
    script = str(Path(__file__).with_name("one_island.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), str(folder / "store"), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(said)
    return world, folder


def came_to(folder: Path, case: str, rank: int) -> np.ndarray[Any, Any]:
    found = np.load(folder / f"{case}-{rank}.npz")
    return np.concatenate([found[name].ravel() for name in BEGIN])


def rounded(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """To the nearest number of a format, ties to even."""
    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float64)
    if dtype == "bf16":  # eight bits of significand
        exponent = np.floor(np.log2(np.abs(values), where=values != 0, out=np.zeros_like(values))) - 7
        return np.rint(values / 2**exponent) * 2**exponent
    return values


def oracle(case: dict[str, Any], islands: int) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Algorithm 1 of arXiv:2311.08105 in float64, with fragments algorithm 2 of arXiv:2501.18512: the anchor, and each
    island's weights."""
    settings = {"outer_lr": 0.7, "outer_momentum": 0.9, "pseudo_gradient_dtype": "fp32", **case["options"]}
    fragments, delay = settings.get("fragments", 1), settings.get("delay", 0)
    every, flying = settings["inner_steps"] // fragments, dict[int, Any]()
    anchor = np.concatenate([value.ravel() for value in BEGIN.values()])
    own = [anchor.copy() for _ in range(islands)]
    first, second, lost = (np.zeros((islands, WIDTH)) for _ in range(3))
    momentum, rate = np.zeros(WIDTH), case["rate"]
    batches = rows(case["steps"], case["batch"])
    for number, batch in enumerate(batches, start=1):
        for island in range(islands):
            share = batch[island * len(batch) // islands : (island + 1) * len(batch) // islands]
            gradient = np.zeros(WIDTH)
            for _, given, target in share:
                gradient += (given @ own[island] - target) * given / (len(batch) / islands)
            if case["optimizer"] == "sgd":
                own[island] -= rate * gradient
                continue
            first[island] = 0.9 * first[island] + 0.1 * gradient
            second[island] = 0.999 * second[island] + 0.001 * gradient**2
            size = np.sqrt(second[island] / (1 - 0.999**number)) + 1e-8
            own[island] -= rate * 0.01 * own[island] + rate * first[island] / (1 - 0.9**number) / size
        final = number == len(batches)

        def arrive(at: slice, mean: Any, mixing: float) -> None:
            momentum[at] = settings["outer_momentum"] * momentum[at] + mean
            anchor[at] -= settings["outer_lr"] * (mean + settings["outer_momentum"] * momentum[at])
            for weights in own:
                weights[at] = mixing * weights[at] + (1 - mixing) * anchor[at]

        for due in sorted(flying):
            if final or due <= number:
                arrive(*flying.pop(due), settings.get("mixing", 0.0))
        if number % every and not final:
            continue
        part = (number // every - 1) % fragments
        at = slice(None) if final else slice(part * WIDTH // fragments, (part + 1) * WIDTH // fragments)
        mean, dtype = np.zeros(WIDTH), settings["pseudo_gradient_dtype"]
        for island in range(islands):
            moved = anchor - own[island]
            if dtype in LARGEST:
                wanted = moved[at] + lost[island][at]
                scale = np.abs(wanted).max() / LARGEST[dtype]
                sent = np.rint(wanted / scale) * scale
                lost[island][at] = wanted - sent
                mean[at] += sent / islands
            else:
                mean += rounded(moved, dtype) / islands
        if delay and not final:
            flying[number + delay] = at, mean[at]
        else:
            arrive(at, mean[at], 0.0 if final else settings.get("mixing", 0.0))
    return anchor, own


LARGEST = {"int8": 127, "int4": 7}
CLOSE = {"bf16": 2e-3, "fp16": 1e-4}
"""Sums in 16 bits round once more; all else is float32."""


@pytest.mark.parametrize("case", [name for name in CASES if name not in AGAIN])
def test_islands_follow_the_paper(trained: tuple[int, Path], case: str) -> None:
    world, folder = trained
    islands = CASES[case]["options"].get("num_islands", world)
    expected, _ = oracle(CASES[case], islands)
    assert np.abs(expected - np.concatenate([value.ravel() for value in BEGIN.values()])).max() > 0.02
    for rank in range(world):
        found = came_to(folder, case, rank)
        np.testing.assert_allclose(found, expected, atol=CLOSE.get(case, 2e-6), err_msg=f"rank {rank}")
        assert np.array_equal(found, came_to(folder, case, 0))


def test_one_inner_step_of_sgd_is_that_of_one_process(trained: tuple[int, Path]) -> None:
    """Uneven shares too: the mean of the islands' gradients is the gradient of the step."""
    _, folder = trained
    expected, _ = oracle(CASES["ddp"], 1)
    np.testing.assert_allclose(came_to(folder, "ddp", 0), expected, atol=2e-6)


def test_a_state_in_the_middle_of_a_round_continues_bit_for_bit(trained: tuple[int, Path]) -> None:
    world, folder = trained
    for again, unbroken in AGAIN.items():
        for rank in range(world):
            assert np.array_equal(came_to(folder, again, rank), came_to(folder, unbroken, rank)), again


def test_as_many_bytes_are_sent_as_foreseen(trained: tuple[int, Path]) -> None:
    """Each exchange of a case counted at the line; the last round is exchanged too."""
    world, folder = trained
    for name, case in CASES.items():
        if name in AGAIN:
            continue
        options = DilocoOptions(**case["options"])
        foreseen = traffic(options, WIDTH, world)
        of_four = {"fp32": 16, "bf16": 8, "fp16": 8, "int8": 4, "int4": 2}[options.pseudo_gradient_dtype]
        assert foreseen.sent == of_four // options.fragments + (4 if "int" in options.pseudo_gradient_dtype else 0)
        exchanges = -(-case["steps"] // foreseen.every)
        given = (exchanges - 1) * foreseen.sent + (foreseen.sent if foreseen.last is None else foreseen.last)
        of_ranks = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(world)]
        size = world // foreseen.peers
        assert of_ranks == [given if rank % size == 0 else None for rank in range(world)]


def test_ranks_of_an_island_send_what_the_strategy_inside_says() -> None:
    """Eight ranks in four islands: firsts of islands exchange among all eight, and in an island its two ranks do."""
    pair = Traffic(every=1, sent=7, peers=1, also=(Traffic(every=1, sent=9, peers=2),))
    inner = SimpleNamespace(wrap=None, open=lambda rank, device: None, traffic=lambda numbers, world: {2: pair}[world])
    said = Diloco(DilocoOptions(num_islands=4), inner).traffic(10, 8)  # type: ignore[arg-type]
    assert (said.peers, said.span, said.sent, [part.sent for part in said.also]) == (4, 8, 40, [7, 9])
    assert Diloco(DilocoOptions(num_islands=8), inner).traffic(10, 8).also == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("within", "reason"),
    [("fsdp", "whole pseudo-gradient"), ("full_shard", "whole pseudo-gradient"), ("zero-3", "whole pseudo-gradient"),
     ({"name": "zero_3"}, "whole pseudo-gradient"),
     ("zero3", "whole pseudo-gradient"),
     ({"name": "deepspeed", "stage": 3}, "whole pseudo-gradient"),
     ({"name": "fsdp", "replicas": 1}, "replicas: 2"),
     ({"name": "fsdp", "replicas": 2, "tensor": 2}, "leave tensor out"),
     ({"name": "fsdp", "replicas": 2, "context": 2}, "leave context out"),
     ("pipeline", "all layers"),
     ("diloco", "made of islands")],
)  # fmt: skip
def test_what_an_island_cannot_be_is_refused_with_the_reason(within: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"diloco cannot run with .*{reason}"):
        DilocoOptions(within=within)


def test_ranks_that_make_no_islands_of_one_size_are_refused() -> None:
    diloco = Diloco(DilocoOptions(num_islands=3), SimpleNamespace(wrap=None, digest=None, close=None))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="4 ranks do not make 3 islands of one size"):
        diloco.open(Rank(0, 4, 0, "127.0.0.1", 29500), "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 10, "fragments": 4}, "does not divide inner_steps=10"),
        ({"inner_steps": 10, "fragments": 5, "delay": 2}, "exchanged every 2 steps; write a smaller delay"),
    ],
)
def test_fragments_that_cannot_come_in_turn_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DilocoOptions(**options)
