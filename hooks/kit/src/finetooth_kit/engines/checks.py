"""The conformance kit for engines: give it a function that makes one.

    @parametrize_engine(make_engine, vocab_size=64)
    def test_engine(check):
        check()

`make_engine` returns a fresh engine with the same weights each time: a toy without dropout, plain SGD with a learning
rate at which a step can be seen, no clipping, and a token budget small enough that six short sequences make several
micro-batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from finetooth_hooks.engine import Engine

from finetooth_kit.checks import Check
from finetooth_kit.collection import expecting
from finetooth_kit.engines.cases import EngineCase
from finetooth_kit.parametrize import parametrize

_MODULES = (
    "capability",
    "scoring",
    "gradients",
    "losses",
    "heads",
    "not_finite",
    "interruption",
    "sampling",
    "running",
    "state",
)


def engine_functions() -> list[Callable[[EngineCase], None]]:
    """The checks of engines as functions, in the order in which they run."""
    return [function for module in _MODULES for function in import_module(f"finetooth_kit.engines.{module}").CHECKS]


def engine_checks(
    make_engine: Callable[[], Engine],
    *,
    vocab_size: int = 32,
    name: str = "engine",
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """All checks of an engine; those about a capability it does not claim are skipped when called.

    Args:
        make_engine: a fresh engine, with the same weights at each call.
        vocab_size: of its model; token ids 1 to vocab_size - 1 are used.
        name: stands in the checks' ids.
        expected_failures: reason by the name of the check.

    Raises:
        ValueError: an expected failure names no check, or gives no reason.
    """

    def bind(function: Callable[[EngineCase], None]) -> Check:
        def run() -> None:
            with tempfile.TemporaryDirectory(prefix="finetooth-engine-") as folder:
                function(EngineCase(make_engine, vocab_size, Path(folder)))

        return Check(f"engine:{name}", function.__name__, run)

    return expecting([bind(function) for function in engine_functions()], expected_failures or {})


def parametrize_engine(
    make_engine: Callable[[], Engine],
    *,
    vocab_size: int = 32,
    name: str = "engine",
    expected_failures: Mapping[str, str] | None = None,
) -> Any:
    """A decorator that runs the engine's checks under pytest; see `engine_checks` for the arguments."""
    return parametrize(
        engine_checks(make_engine, vocab_size=vocab_size, name=name, expected_failures=expected_failures)
    )
