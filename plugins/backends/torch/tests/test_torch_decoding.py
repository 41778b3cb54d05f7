"""Writing with the stream decoder and its caches: against transformers, the engine's scores and NumPy in float64."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import finetooth_torch.generation.cached_step as decode
import finetooth_torch.generation.generator as generation
import finetooth_torch.generation.kv_cache as kv_cache
import finetooth_torch.generation.packed_layers as packed_module
import finetooth_torch.generation.rows_in_progress as writing
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, Sampling
from finetooth_hooks.protocols import LowRank
from finetooth_kernels import capture
from finetooth_kernels.segments import Looks
from finetooth_kit import draws
from finetooth_native.operations import sums_wide
from finetooth_native.stream_decoder import Group
from finetooth_torch.compute import TORCH
from finetooth_torch.decoder.bodies import StreamBody, TransformersBody
from finetooth_torch.generation.kv_cache import KeyValueCache
from finetooth_torch.generation.packed_layers import PackedGroup, PackedLinear, can_pack, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

PROMPTS = [
    [5, 9, 14],
    [7],
    [30 + i % 20 for i in range(40)],
    [8, 8, 50, 2, 21],
    [30 + i % 20 for i in range(35)],
    [7, 3],
]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tokens_of(completions: Any) -> list[list[tuple[int, ...]]]:
    return [[one.tokens for one in of_prompt] for of_prompt in completions]


@pytest.fixture(params=["as it is", "a cache each"])
def caches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a cache for every prompt length, where small prompts would share one."""
    if request.param == "a cache each":
        monkeypatch.setattr(decode, "WASTE", 0)


@pytest.mark.parametrize("config", ["llama", pytest.param("qwen2", marks=pytest.mark.slow), "qwen3"])
@pytest.mark.usefixtures("caches")
def test_greedy_tokens_are_those_of_transformers_generate(kit: SimpleNamespace, config: str) -> None:
    settings = {"head_dim": 8} if config == "qwen3" else {}  # heads wider than hidden / heads
    engine = kit.engine(
        config=kit.config(config, **settings), adapter=kit.adapter(targets=LINEAR), micro_batch_tokens=10_000
    )
    found = engine.generate(PROMPTS, Sampling(max_tokens=40, temperature=0, stop_ids=()))
    for prompt, (one,) in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            whole = engine._parts.network.base.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0
            )
        assert one.tokens == tuple(whole[0, len(prompt) :].tolist())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.1)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.usefixtures("caches")
def test_logprobs_are_the_scored_ones_while_caches_grow_and_rows_leave(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float, n: int
) -> None:
    monkeypatch.setattr(kv_cache, "BLOCK", 4)
    engine = kit.engine(adapter=kit.adapter(targets=LINEAR), micro_batch_tokens=10_000, precision=precision)
    found = engine.generate(PROMPTS, Sampling(max_tokens=30, n=n, stop_ids=tuple(range(2, 12))))
    assert len({len(one.tokens) for of_prompt in found for one in of_prompt}) > 4
    for prompt, completions in zip(PROMPTS, found, strict=True):
        for one in completions:
            scored = engine.logprobs([Datum.from_tokens([*prompt, *one.tokens])])[0][len(prompt) - 1 :]
            assert np.allclose(one.logprobs, scored, atol=tolerance)


@settings(max_examples=draws(6), deadline=None)
@given(data=st.data())
def test_what_else_is_written_changes_nothing(kit: SimpleNamespace, data: st.DataObject) -> None:
    if not hasattr(kit, "one_engine"):
        kit.one_engine = kit.engine(adapter=kit.adapter(targets=LINEAR), micro_batch_tokens=10_000)
    chosen = data.draw(st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=6, unique=True))
    sampling = Sampling(
        max_tokens=data.draw(st.integers(1, 20)), n=data.draw(st.integers(1, 3)), seed=data.draw(st.integers(0, 3)),
        temperature=data.draw(st.sampled_from([0.0, 1.0])), stop_ids=(4, 5, 6, 7, 8, 9),
    )  # fmt: skip
    together = tokens_of(kit.one_engine.generate([PROMPTS[i] for i in chosen], sampling))
    assert together == [tokens_of(kit.one_engine.generate([PROMPTS[i]], sampling))[0] for i in chosen]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("caches")
def test_a_captured_step_writes_the_same(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Bit for bit, while rows leave; heads are such as the compiled attention takes."""
    engine = kit.engine(
        config=kit.config("llama", head_dim=16), adapter=kit.adapter(targets=LINEAR), micro_batch_tokens=10_000,
        precision=precision,
    )  # fmt: skip
    if not isinstance(engine._parts.network.body, StreamBody):
        pytest.skip("the stream decoder's affair")
    if "rms_norm" not in kit.kernels():
        pytest.skip("there are no compiled kernels")
    if precision == "bf16" and not sums_wide(torch.ones(4, 4, dtype=torch.bfloat16)):
        pytest.skip("no compiled products of bfloat16 here, and torch's are not captured")
    replays: list[int] = []
    monkeypatch.setattr(
        capture.Captured, "__call__", lambda one, real=capture.Captured.__call__: (replays.append(1), real(one))[1]
    )
    sampling = Sampling(max_tokens=80, n=2, stop_ids=(2, 3))
    found = engine.generate(PROMPTS, sampling)
    assert len({len(one.tokens) for of_prompt in found for one in of_prompt}) > 4 and len(replays) > 10
    monkeypatch.setattr(capture, "WORTH_CAPTURING", 1000)
    before = len(replays)
    assert engine.generate(PROMPTS, sampling) == found and len(replays) == before


def test_packed_weights_go_as_soon_as_all_is_written(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python next looks for cycles: a second call would hold the first one's weights beside its own."""
    made: list[weakref.ref[PackedLinear]] = []

    class Seen(PackedLinear):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(packed_module, "PackedLinear", Seen)
    engine = kit.engine(config=kit.config("llama", head_dim=16), adapter=kit.adapter(targets=LINEAR))
    if not isinstance(engine._parts.network.body, StreamBody):
        pytest.skip("the stream decoder's affair")
    gc.disable()
    try:
        engine.generate(PROMPTS, Sampling(max_tokens=30, stop_ids=()))
        assert made and not any(one() for one in made)
    finally:
        gc.enable()


def test_the_model_s_own_code_writes_the_same(kit: SimpleNamespace) -> None:
    adapter = kit.adapter(targets=LINEAR)
    sampling = Sampling(max_tokens=20, n=2, stop_ids=(4, 5, 6, 7))
    stream = kit.engine(adapter=adapter, micro_batch_tokens=10_000, decoder="stream")
    assert isinstance(stream._parts.network.body, StreamBody)
    plain = kit.engine(adapter=adapter, micro_batch_tokens=10_000, decoder="transformers")
    assert isinstance(plain._parts.network.body, TransformersBody)
    assert tokens_of(stream.generate(PROMPTS, sampling)) == tokens_of(plain.generate(PROMPTS, sampling))


@pytest.mark.parametrize("full", [False, True])
def test_packed_weights_are_those_of_the_call(kit: SimpleNamespace, full: bool) -> None:
    """A step between two calls moves what the second one computes, adapter and whole model alike."""
    engine = kit.engine(adapter=kit.adapter(full=full, targets=LINEAR), optimizer=kit.sgd(0.5))
    greedy = Sampling(max_tokens=generation.WORTH_PACKING, temperature=0, stop_ids=())
    (before,) = engine.generate(PROMPTS[:1], greedy)[0]
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    (after,) = engine.generate(PROMPTS[:1], greedy)[0]
    scored = engine.logprobs([Datum.from_tokens([*PROMPTS[0], *after.tokens])])[0][len(PROMPTS[0]) - 1 :]
    assert np.allclose(after.logprobs, scored, atol=1e-4)
    assert not np.allclose(before.logprobs, after.logprobs, atol=1e-4)


def test_batches_are_even_and_within_the_budget(kit: SimpleNamespace) -> None:
    generator = kit.engine(micro_batch_tokens=100)._generator  # 400 positions a batch
    prompts = [[2] * length for length in np.random.default_rng(0).integers(1, 60, size=50)]
    for n in (1, 2):
        sampling = Sampling(max_tokens=50, n=n)
        batches = generator._batches(prompts, sampling)
        assert sorted(i for batch in batches for i in batch) == list(range(50))
        sizes = [sum(len(prompts[i]) + n * 50 for i in batch) for batch in batches]
        assert max(sizes) <= 400
        assert min(sizes) > 200
    assert generator._batches([[2] * 60], Sampling(max_tokens=1000)) == [[0]]


@pytest.mark.slow
def test_samples_of_one_prompt_are_written_in_waves_that_fit(kit: SimpleNamespace) -> None:
    """Seven samples of 43 + 7 x 20 positions under budgets from one row at a time to all at once: the same tokens."""
    sampling = Sampling(max_tokens=20, n=7, seed=1, stop_ids=(4, 5, 6))
    prompts = [PROMPTS[2] + [3, 4, 5], PROMPTS[0]]
    expected = tokens_of(kit.engine(micro_batch_tokens=10_000).generate(prompts, sampling))
    for budget, sizes in (
        (4, [1] * 14),
        (16, [1] * 7 + [2, 2, 3]),
        (25, [1, 2, 2, 2, 3, 4]),
        (40, [3, 4, 7]),
        (64, [7, 7]),
    ):
        generator = (engine := kit.engine(micro_batch_tokens=budget))._generator
        waves = list(generator._waves(prompts, sampling))
        assert sorted(len(samples) for _, samples in waves) == sorted(sizes)
        for batch, samples in waves:
            positions = sum(len(prompts[i]) + len(samples) * 20 for i in batch)
            assert positions <= 4 * budget or len(samples) == 1
        assert tokens_of(engine.generate(prompts, sampling)) == expected


def test_a_late_stop_string_is_found(kit: SimpleNamespace) -> None:
    """Beyond the reach of the tokens looked at first, and across tokens of one letter."""
    engine = kit.engine()
    (free,) = engine.generate([PROMPTS[0]], Sampling(max_tokens=120, stop_ids=(), seed=5))[0]
    stop = free.text[100:104]
    at = free.text.find(stop)
    assert at > writing.TOKENS_BEFORE + writing.BYTES_OF_LETTER * 4
    (ended,) = engine.generate([PROMPTS[0]], Sampling(max_tokens=120, stop_ids=(), seed=5, stop=(stop, "~~")))[0]
    assert ended.text == free.text[:at] and ended.stop == "stop" and len(ended.tokens) == at + 4


# --- the cache alone --------------------------------------------------------------------------------------------------


class Rows:
    """What a cache should hold: every row's keys and values, in float64."""

    def __init__(self, cache: KeyValueCache, lengths: list[int], heads: int, random: np.random.Generator) -> None:
        self.cache, self.heads, self.random = cache, heads, random
        self.dtype, self.kv_heads, self.size = cache._like.dtype, cache._heads, cache._size
        cells = torch.from_numpy(random.permutation(sum(lengths)))
        grid = torch.zeros((len(lengths), max(lengths) + 3), dtype=torch.int64)  # wider, as beside longer prompts
        for row, length, part in zip(grid, lengths, cells.split(lengths), strict=True):
            row[:length] = part
        self.kept: list[list[np.ndarray]] = [[] for _ in cache._own]
        for layer in range(len(cache._own)):
            kv = self.numbers(sum(lengths), 2 * self.kv_heads)
            cache.write_prompts(layer, kv, grid)
            exact = kv.double().numpy()
            of_prompt = [exact[part.numpy()] for part in cells.split(lengths)]
            self.kept[layer] = [rows for rows in of_prompt for _ in range(cache.samples)]

    def numbers(self, rows: int, heads: int) -> torch.Tensor:
        return torch.from_numpy(self.random.normal(size=(rows, heads, self.size))).to(self.dtype)

    def write(self) -> None:
        """A token for each row; what the cache finds must be what softmax attention finds."""
        self.cache.advance()
        for layer, kept in enumerate(self.kept):
            qkv = self.numbers(len(kept), self.heads + 2 * self.kv_heads)
            found = qkv.new_empty((len(kept), self.heads * self.size))
            self.cache.attend(layer, qkv, self.heads, Looks(0.3), found)
            exact = qkv.double().numpy()
            for r in range(len(kept)):
                kept[r] = np.concatenate([kept[r], exact[r : r + 1, self.heads :]])
                keys, values = np.split(kept[r], 2, 1)
                for head in range(self.heads):
                    group = head // (self.heads // self.kv_heads)
                    scores = 0.3 * keys[:, group] @ exact[r, head]
                    weights = np.exp(scores - scores.max())
                    expected = weights @ values[:, group] / weights.sum()
                    at = slice(head * self.size, (head + 1) * self.size)
                    assert np.allclose(found[r, at].double(), expected, atol=0.05 if self.dtype.itemsize == 2 else 1e-5)

    def retire(self, alive: list[bool]) -> list[bool]:
        kept = self.cache.retire(alive)
        self.kept = [[rows[i] for i in kept] for rows in self.kept]
        assert self.cache.rows == len(kept)
        assert {i for i, lives in enumerate(alive) if lives} <= set(kept)
        return [alive[i] for i in kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 16], ids=["matrix products", "compiled"])
@settings(max_examples=draws(12), deadline=None)
@given(data=st.data())
def test_the_cache_holds_what_was_written(size: int, dtype: torch.dtype, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "BLOCK", 4)
        lengths = sorted(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)), reverse=True)
        samples, random = data.draw(st.integers(1, 3)), np.random.default_rng(data.draw(st.integers(0, 99)))
        cache = KeyValueCache(lengths, samples, 10, layers=2, kv_heads=2, size=size, like=torch.empty(0, dtype=dtype))
        rows = Rows(cache, lengths, 4, random)
        alive = [True] * cache.rows
        for _ in range(10):
            rows.write()
            alive = [lives and bool(random.uniform() > 0.15) for lives in alive]
            if not any(alive):
                assert rows.retire(alive) == []
                break
            if data.draw(st.booleans()):
                alive = rows.retire(alive)


def test_a_cache_drops_what_nobody_needs() -> None:
    cache = KeyValueCache([3, 2, 1], 4, 5, layers=1, kv_heads=1, size=2, like=torch.empty(0))
    kept = cache.retire([False, True, False, True] + [False] * 4 + [True] * 2 + [False] * 2)
    assert cache.prompts == 2 and cache.samples == 2
    assert kept == [1, 3, 8, 9]


# --- packed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_group_computes_what_the_group_does(dtype: torch.dtype, bias: bool) -> None:
    if not can_pack(dtype, "cpu"):
        pytest.skip("this torch packs nothing")
    torch.manual_seed(3)
    layers = [nn.Linear(24, size, bias=bias and size != 8).to(dtype) for size in (16, 8, 12)]
    additions = {
        layers[0]: (torch.randn(4, 24).to(dtype), torch.randn(16, 4).to(dtype), 0.5),
        layers[2]: (torch.randn(2, 24).to(dtype), torch.randn(12, 2).to(dtype), 2.0),
    }
    wrapped = [nn.Sequential(layer) if layer in additions else layer for layer in layers]
    group = Group(wrapped, lambda module: LowRank(module[0], *additions[module[0]]), TORCH)
    fast = packed(group)
    assert isinstance(fast, PackedGroup)
    x = torch.randn(5, 24).to(dtype)
    exact = []
    for layer in layers:
        a, b, scale = additions.get(layer, (torch.zeros(1, 24), torch.zeros(layer.out_features, 1), 0.0))
        y = x.double() @ layer.weight.double().t() + scale * (x.double() @ a.double().t()) @ b.double().t()
        exact.append(y if layer.bias is None else y + layer.bias.double())
    expected = torch.cat(exact, -1)
    allowed = (1e-5 if dtype == torch.float32 else 0.02) * float(expected.detach().abs().max())
    with torch.no_grad():
        for found in (fast(x), group(x)):
            assert float((found.double() - expected).abs().max()) <= allowed


def test_what_is_more_than_matrices_is_not_packed() -> None:
    group = Group([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))], lambda module: None, TORCH)
    assert packed(group) is group
    doubles = Group([nn.Linear(4, 4).double()], lambda module: None, TORCH)
    assert packed(doubles) is doubles
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert packed(Group([hooked], lambda module: None, TORCH)).__class__ is Group
    mixed = nn.Linear(4, 4)
    wide = Group(
        [nn.Sequential(mixed)], lambda m: LowRank(mixed, torch.ones(1, 4).double(), torch.ones(4, 1), 1.0), TORCH
    )
    assert packed(wide) is wide


def test_a_packed_linear_keeps_its_weights() -> None:
    if not can_pack(torch.float32, "cpu"):
        pytest.skip("this torch packs nothing")
    weight = torch.randn(6, 5)
    linear, x = PackedLinear(weight), torch.randn(3, 5)
    expected = x @ weight.t()
    weight.zero_()
    assert torch.allclose(linear(x), expected, atol=1e-6)
