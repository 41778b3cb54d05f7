"""Engines and roles over one copy of a base: what MLX's allocator counts, and numbers of engines that are alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
from finetooth_hooks import Datum, Sampling
from finetooth_hooks.protocols import RoleRequest
from finetooth_kit import FakeContext
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.adapters import FullAdapter, LoraAdapter, LoraOptions
from finetooth_mlx.loader import MlxOptions, build

DATA = [Datum.from_tokens(list(range(20, 32)), id="first"), Datum.from_tokens(list(range(40, 60)), id="second")]
BASE = 128 * 256 * 4 * 4
"""Bytes that a base of width 128 takes at the least."""
SHARED = {"share_base": True}
ONE, TWO = LoraOptions(rank=4), LoraOptions(rank=2, dropout=0.3)


def taken(make: Callable[[], Any]) -> tuple[Any, int]:
    """What a call makes, and the bytes that are in use because of it."""
    gc.collect()
    before = mx.get_active_memory()
    made = make()
    gc.collect()
    return made, mx.get_active_memory() - before


def trained(engine: Any) -> Any:
    for _ in range(3):
        engine.forward_backward(DATA, WEIGHTED_NLL)
        engine.step()
    return [list(map(float, of)) for of in engine.logprobs(DATA)], engine.generate(
        [[5, 6, 7]], Sampling(max_tokens=6, seed=1)
    ).completions


@pytest.fixture
def folder(tmp_path: Path, write: Callable[..., Path], quantised: Callable[..., Path], request: Any) -> Path:
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain", width=128)
    if getattr(request, "param", "plain") == "plain":
        return tmp_path / "plain"
    (tmp_path / "few").mkdir()
    return quantised(tmp_path / "few", tmp_path / "plain", 4)


@pytest.mark.parametrize("folder", ["plain", "quantised"], indirect=True)
def test_engines_share_the_base_and_nothing_else(folder: Path, engine_of: Any) -> None:
    alone = [trained(engine_of(folder, adapter=LoraAdapter(options))) for options in (ONE, TWO)]
    make = lambda options, share: engine_of(folder, adapter=LoraAdapter(options), options={"share_base": share})  # noqa: E731
    _, whole = taken(lambda: make(TWO, False))
    first, of_first = taken(lambda: make(ONE, True))
    second, of_second = taken(lambda: make(TWO, True))
    assert of_first > 3 * of_second < whole  # of the second, adapters alone
    fresh = second.logprobs(DATA)
    together = [trained(first)]
    assert all(np.array_equal(*pair) for pair in zip(fresh, second.logprobs(DATA), strict=True))
    assert [*together, trained(second)] == alone


def test_the_base_goes_with_its_last_engine(folder: Path, engine_of: Any) -> None:
    engines, all_of_it = taken(lambda: [engine_of(folder, options=SHARED) for _ in range(2)])
    first, last = (taken(lambda: bool(engines.pop()))[1] for _ in range(2))
    assert all_of_it > BASE and first > -BASE / 2 and last < -BASE


def test_whole_weights_are_not_shared(folder: Path, engine_of: Any) -> None:
    adapter = engine_of(folder, options=SHARED)
    before = adapter.logprobs(DATA)
    trained(engine_of(folder, adapter=FullAdapter(), options=SHARED))
    assert all(np.array_equal(*pair) for pair in zip(before, adapter.logprobs(DATA), strict=True))


def test_a_role_that_is_the_base_takes_no_second_copy(folder: Path, engine_of: Any, tmp_path: Path) -> None:
    loader = build(MlxOptions(), FakeContext(tmp_path, installed=True))
    info = loader.describe(str(folder))
    facts = FakeContext(tmp_path, installed=True).build("family", "llama").facts(info.config)
    _, alone = taken(lambda: engine_of(folder))
    roles = {name: RoleRequest(info, facts, loader) for name in ("reference", "teacher")}
    engine, both = taken(lambda: engine_of(folder, roles=roles))
    assert both - alone < BASE / 4
    before = [np.array(of) for of in engine.logprobs(DATA)]
    trained(engine)
    for role in roles:
        assert all(np.array_equal(*pair) for pair in zip(before, engine.logprobs(DATA, role=role), strict=True))
    assert not np.array_equal(before[0], engine.logprobs(DATA)[0])
