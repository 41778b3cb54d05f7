"""The engine's conformance kit tested: each way of breaking the NumPy engine fails the check that is about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_kit import CheckResult, engine_checks, run_check
from toy_numpy.broken import BROKEN, IgnoresTotals, LooksAtNeighbours, MeanOfMeans
from toy_numpy.engine import NumpyEngine
from toy_numpy.making import engine

VOCAB = 12


def run(make: Callable[[], Any], only: str | None = None) -> list[CheckResult]:
    checks = engine_checks(make, vocab_size=VOCAB)
    assert only is None or only in {check.name for check in checks}
    return [run_check(check) for check in checks if only in (None, check.name)]


def broken(cls: type[NumpyEngine]) -> Callable[[], NumpyEngine]:
    def make() -> NumpyEngine:
        sound = engine()
        return cls(sound.model, sound.request)

    return make


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_broken_engine_fails_its_check(cls: type[NumpyEngine]) -> None:
    (result,) = run(broken(cls), BROKEN[cls])
    assert result.status == "failed", result


def test_each_check_is_proven_by_a_broken_engine() -> None:
    names = {check.name for check in engine_checks(engine, vocab_size=VOCAB)}
    unproven = names - set(BROKEN.values()) - {"held_adapters_are_sampled_beside_each_other"}  # the toy holds none
    assert unproven == {"logprobs_equal_forward", "mask_only_selects", "normalizer_divides"}


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (LooksAtNeighbours, "logprobs_equal_forward"),
        (IgnoresTotals, "normalizer_divides"),
        (MeanOfMeans, "calls_accumulate"),
    ],
)
def test_broken_engine_fails_these_too(cls: type[NumpyEngine], check: str) -> None:
    (result,) = run(broken(cls), check)
    assert result.status == "failed"


def test_what_an_engine_does_not_claim_is_skipped() -> None:
    class Plain(NumpyEngine):
        capabilities = frozenset()

    results = run(broken(Plain))
    # it serves the reference role, and does more, without claiming it: that must be refused
    failed = {result.check for result in results if result.status == "failed"}
    assert failed == {"unknown_role_is_refused", "what_is_not_said_is_refused"}
    skipped = {result.check for result in results if result.status == "skipped"}
    assert {"seed_alone_decides", "spent_handles_are_refused", "restored_engine_continues_exactly"} <= skipped


def test_every_check_is_documented_and_unique() -> None:
    from importlib import import_module

    for part in ("scoring", "gradients", "losses", "sampling", "state"):
        for function in import_module(f"finetooth_kit.engines.{part}").CHECKS:
            assert function.__doc__
    names = [check.name for check in engine_checks(engine)]
    assert len(set(names)) == len(names)
