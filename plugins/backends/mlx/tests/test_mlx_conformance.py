"""The engine and the plugin keep their contracts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import importlib.util

from finetooth_hooks import ScalarHead
from finetooth_kit import engine_checks, parametrize_engine, parametrize_with_checks
from finetooth_kit.parametrize import parametrize
from finetooth_mlx.adapters import FullAdapter

_spec = importlib.util.spec_from_file_location("mlx_engines", Path(__file__).with_name("conftest.py"))
assert _spec is not None and _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


VOCAB = 64


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="finetooth-mlx-"))
    engines.write_model(path, vocab_size=VOCAB)
    return path


def low_rank() -> Any:
    return engines.make_engine(folder())


def headed() -> Any:
    return engines.make_engine(folder(), head=ScalarHead())


def judging_steps() -> Any:
    """All weights train, with a head of two labels."""
    return engines.make_engine(folder(), adapter=FullAdapter(), head=ScalarHead(bias=True, exported_as="token"))


def whole() -> Any:
    return engines.make_engine(folder(), adapter=FullAdapter())


@parametrize_engine(headed, vocab_size=VOCAB, name="mlx-lora")
def test_the_engine_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(whole, vocab_size=VOCAB, name="mlx-full")
def test_the_engine_with_all_weights_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(low_rank, vocab_size=VOCAB, name="mlx-lora-alone")
def test_the_engine_without_a_head_conforms(check: Callable[[], None]) -> None:
    check()


HEADS = [check for check in engine_checks(judging_steps, vocab_size=VOCAB, name="mlx-steps") if "head" in check.name]


@parametrize(HEADS)
def test_a_head_of_two_labels_over_all_weights_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks("finetooth_mlx.plugin")
def test_the_plugin_conforms(check: Callable[[], None]) -> None:
    check()
