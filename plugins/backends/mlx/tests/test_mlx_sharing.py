"""Engines and roles over one copy of a base: what MLX's allocator counts, and numbers of engines that are alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from finetooth_mlx.planning import MLX_OVERHEAD, estimate
from finetooth_mlx.quantizers import GroupOptions, build_int4

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


@pytest.mark.slow
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


def described(folder: Path) -> RoleRequest:
    context = FakeContext(folder, installed=True)
    loader = build(MlxOptions(), context)
    info = loader.describe(str(folder))
    return RoleRequest(info, context.build("family", "llama").facts(info.config), loader)


@pytest.mark.slow
def test_roles_are_stored_as_the_base_is(folder: Path, engine_of: Any, write: Callable[..., Path]) -> None:
    """With a quantizer the base has no second copy either, and another model takes as little as the base does."""
    (folder.parent / "other").mkdir()
    other = write(folder.parent / "other", width=128, seed=9)
    quantizer = build_int4(GroupOptions())
    make = lambda **roles: engine_of(folder, quantizer=quantizer, roles=roles)  # noqa: E731
    _, alone = taken(make)
    _, same = taken(lambda: make(reference=described(folder)))
    engine, both = taken(lambda: make(teacher=described(other)))
    assert same - alone < alone / 10 and alone * 0.8 < both - alone < alone
    wanted = engine_of(other, quantizer=quantizer).logprobs(DATA)
    found = engine.logprobs(DATA, role="teacher")
    assert all(np.array_equal(*pair) for pair in zip(wanted, found, strict=True))


def test_the_plan_counts_a_model_once_and_the_cache_of_sampling(folder: Path, write: Callable[..., Path]) -> None:
    (folder.parent / "other").mkdir()
    base = described(folder)
    other = described(write(folder.parent / "other", width=128, seed=9))

    def planned(needs: Any = (), quantizer: Any = None, cache: str = "plain", **roles: RoleRequest) -> Any:
        request = SimpleNamespace(
            base=SimpleNamespace(facts=base.facts, model=base.model, quantizer=quantizer), roles=roles, opened=(),
            trains=SimpleNamespace(parameters=100, base_frozen=True), needs=frozenset(needs),
            updates=SimpleNamespace(state_bytes=8), data=SimpleNamespace(longest=64),
            snapshots=SimpleNamespace(device=0, host=0), role_parameters=sum(1 for _ in roles), several_calls=False,
        )  # fmt: skip
        return estimate(request, "bf16", 1024, checkpointing=False, kv_cache=cache).parts  # type: ignore[arg-type]

    plain = planned()
    assert plain["overhead"] == MLX_OVERHEAD and "roles" not in plain
    assert planned(reference=base, teacher=base)["roles"] == 0
    assert planned(reference=other, teacher=other)["roles"] == 2 * other.model.parameters
    few = build_int4(GroupOptions())
    stored = planned(quantizer=few, teacher=other)
    assert stored["roles"] == stored["weights"] - 4 * 100
    facts = base.facts
    of_layer = (6 * facts.ffn_size + 8 * facts.hidden_size) * 2
    for cache, size in (("plain", 2), ("int8", 1.0625), ("int4", 0.5625)):
        of_token = 2 * facts.layers * facts.kv_heads * facts.head_dim * size + of_layer
        wanted = max(plain["activations"], int(4 * 1024 * of_token))
        assert planned({"generate"}, cache=cache)["activations"] == wanted > plain["activations"]


@pytest.mark.slow
def test_a_role_that_is_the_base_takes_no_second_copy(folder: Path, engine_of: Any) -> None:
    _, alone = taken(lambda: engine_of(folder))
    roles = {name: described(folder) for name in ("reference", "teacher")}
    engine, both = taken(lambda: engine_of(folder, roles=roles))
    assert both - alone < BASE / 4
    before = [np.array(of) for of in engine.logprobs(DATA)]
    trained(engine)
    for role in roles:
        assert all(np.array_equal(*pair) for pair in zip(before, engine.logprobs(DATA, role=role), strict=True))
    assert not np.array_equal(before[0], engine.logprobs(DATA)[0])
