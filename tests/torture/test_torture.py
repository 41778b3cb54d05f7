"""Runs that are killed at random moments, and inside saving, renaming and sending, end bit for bit as if they had not
been: over every pair of precision, adapter, dropout, accumulation, data, schedule and optimizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import CHOICES, pairs, pairwise, write_data  # type: ignore[import-not-found]
from killing import Zygote  # type: ignore[import-not-found]
from method_cases import write_method_data  # type: ignore[import-not-found]
from s3 import server  # type: ignore[import-not-found]
from trials import Arena, Trial, cases, trials  # type: ignore[import-not-found]

KILLS = 2
INSTRUMENTED = 1


def test_every_pair_of_choices_occurs() -> None:
    choices = {**CHOICES, "schedule": ("a", "b", "c"), "optimizer": ("x", "y", "z")}
    found = pairwise(0, **choices)
    covered = set().union(*(pairs(case.choices) for case in found))
    expected = sum(
        len(choices[a]) * len(choices[b]) for i, a in enumerate(choices) for b in list(choices)[i + 1 :]
    )  # fmt: skip
    assert len(covered) == expected
    assert len(found) < 30


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Arena]:
    pytest.importorskip("moto")
    folder = tmp_path_factory.mktemp("torture")
    write_data(folder)
    write_method_data(folder)
    with server() as environment:
        zygote = Zygote(environment)
        yield Arena(zygote, folder, tiny_llama)
        zygote.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial", list(trials(len(cases()), KILLS, instrumented=INSTRUMENTED)), ids=lambda t: t.case.name
)
def test_a_run_that_is_killed_and_resumed_is_the_same_to_the_bit(arena: Arena, trial: Trial) -> None:
    assert arena.run(trial).different == ()
