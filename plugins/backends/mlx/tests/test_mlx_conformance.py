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

from finetooth_kit import parametrize_engine, parametrize_with_checks

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


def whole() -> Any:
    return engines.make_engine(folder(), adapter=engines.FullAdapter())


@parametrize_engine(low_rank, vocab_size=VOCAB, name="mlx-lora")
def test_the_engine_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(whole, vocab_size=VOCAB, name="mlx-full")
def test_the_engine_with_all_weights_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks("finetooth_mlx.plugin")
def test_the_plugin_conforms(check: Callable[[], None]) -> None:
    check()
