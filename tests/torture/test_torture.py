"""Runs that are killed at random moments, and inside saving, renaming and sending, end bit for bit as if they had not
been: over every pair of precision, adapter, dropout, accumulation, data, schedule and optimizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/samplers/servers/tests"))

from cases import CHOICES, Case, pairs, pairwise, write_data  # type: ignore[import-not-found]
from killing import Zygote  # type: ignore[import-not-found]
from method_cases import METHOD_CASES, ONLINE_CASES, RANK_CASES, write_method_data  # type: ignore[import-not-found]
from mlx_cases import mlx_cases  # type: ignore[import-not-found]
from s3 import server  # type: ignore[import-not-found]
from trials import Arena, Trial, cases, trials  # type: ignore[import-not-found]
from vllm_stand_in import StandIn  # type: ignore[import-not-found]

KILLS = 2
INSTRUMENTED = 1
MLX_KILLS = 4
ONLINE_KILLS, ONLINE_ROUNDS = 4, 5
"""Of every case that learns from rollouts: kills in a trial, and trials; more than 200 in all."""


def test_every_pair_of_choices_occurs() -> None:
    choices = {**CHOICES, "schedule": ("a", "b", "c"), "optimizer": ("x", "y", "z")}
    found = pairwise(0, **choices)
    covered = set().union(*(pairs(case.choices) for case in found))
    expected = sum(
        len(choices[a]) * len(choices[b]) for i, a in enumerate(choices) for b in list(choices)[i + 1 :]
    )  # fmt: skip
    assert len(covered) == expected
    assert len(found) < 30


def test_every_method_has_a_case() -> None:
    """But for `trl`, of whose trainers tests/runs/test_trl_bridge.py kills and resumes each that can be resumed."""
    from finetooth_core.plugins import manager

    methods = {one.entry.name for one in manager.start().catalog.all("method")}
    tried = {case.method["name"] for case in (*METHOD_CASES, *ONLINE_CASES)}
    assert methods - tried == {"sft", "pretrain", "trl"}  # the first two are those of the pairs of choices


def test_mlx_has_every_pair_of_its_choices_and_methods() -> None:
    pytest.importorskip("mlx_lm")
    found = mlx_cases()
    adapters = {(case.choices["adapter"], case.choices["optimizer"]) for case in found if isinstance(case, Case)}
    assert len(adapters) == 10 and len({case.name for case in found}) == len(found)
    assert {case.name for case in found} >= {"mlx-grpo", "mlx-dpo-following_copy", "mlx-rm"}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Arena]:
    pytest.importorskip("moto")
    folder = tmp_path_factory.mktemp("torture")
    write_data(folder)
    write_method_data(folder)
    with server() as environment:
        zygote, stand_in = Zygote(environment), StandIn()
        yield Arena(zygote, folder, tiny_llama, stand_in.url)
        zygote.close()
        stand_in.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial", list(trials(len(cases()), KILLS, instrumented=INSTRUMENTED)), ids=lambda t: t.case.name
)
def test_a_run_that_is_killed_and_resumed_is_the_same_to_the_bit(arena: Arena, trial: Trial) -> None:
    assert arena.run(trial).different == ()


def mlx_trials() -> list[Trial]:
    """Once round the cases; more than a hundred kills."""
    every = mlx_cases()
    return list(trials(len(every), MLX_KILLS, instrumented=2, every=every))


@pytest.mark.slow
@pytest.mark.parametrize("trial", mlx_trials() if find_spec("mlx_lm") else [], ids=lambda t: t.case.name)
def test_a_run_of_mlx_that_is_killed_is_the_same_to_the_bit(arena: Arena, trial: Trial) -> None:
    assert arena.run(trial).different == ()


def rollout_trials() -> list[Trial]:
    """As `make torture` tries them, two of the kills in calls and two at random moments."""
    names, count = {case.name for case in ONLINE_CASES}, len(cases()) * ONLINE_ROUNDS
    return [one for one in trials(count, ONLINE_KILLS, instrumented=2) if one.case.name in names]


def test_rollouts_are_killed_two_hundred_times() -> None:
    assert sum(trial.kills for trial in rollout_trials()) >= 200


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("trial", rollout_trials(), ids=lambda t: f"{t.case.name}-{t.number}")
def test_no_prompt_is_lost_or_repeated_however_often_it_is_killed(arena: Arena, trial: Trial) -> None:
    """While answers are drawn and scored, weights are put into a server, and steps are saved."""
    assert arena.run(trial).different == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial", list(trials(len(RANK_CASES), 2, instrumented=1, every=RANK_CASES)), ids=lambda t: t.case.name
)
def test_a_killed_rank_ends_the_other_and_the_resumed_run_is_the_same(arena: Arena, trial: Trial) -> None:
    assert arena.run(trial).different == ()
