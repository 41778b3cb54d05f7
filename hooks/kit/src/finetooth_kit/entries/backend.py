"""Checks of backends: the engine that one builds of the kit's own parts passes the checks of every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from finetooth_hooks.entries import Backend

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for
from finetooth_kit.engines.cases import EngineCase
from finetooth_kit.engines.checks import engine_functions
from finetooth_kit.torch_request import VOCABULARY, torch_request


def _engine_of(case: EntryCase) -> Any:
    """A fresh engine of the backend.

    Raises:
        CheckSkipped: the kit cannot make its parts.
    """
    assert isinstance(case.entry, Backend)
    if case.entry.remote:
        raise CheckSkipped("its engines are at a server")
    if case.entry.framework != "torch":
        raise CheckSkipped(
            f"for {case.entry.framework}; the kit builds engines over torch only: use parametrize_engine for yours"
        )
    for package in ("torch", "transformers", "safetensors"):
        if find_spec(package) is None:
            raise CheckSkipped(f"{package} is not installed")
    return replace(case, installed=True).build().engine(torch_request())  # it may pick kernels and attention


def _of_backends(function: Callable[[EngineCase], None]) -> Callable[[EntryCase], None]:
    def check(case: EntryCase) -> None:
        function(EngineCase(lambda: _engine_of(case), VOCABULARY, case.folder))

    check.__name__, check.__doc__ = function.__name__, function.__doc__
    return check


for _function in engine_functions():
    check_for("backend")(_of_backends(_function))
