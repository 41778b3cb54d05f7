"""A running batch: what a request gets is what it gets alone, whoever joins and leaves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import finetooth_torch.generation.cached_step as decode
import numpy as np
import pytest
import torch
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_kernels import capture
from finetooth_kernels.segments import Looks
from finetooth_torch.decoder.bodies import TransformersBody
from finetooth_torch.generation.kv_cache import KeyValueCache
from transformers import AutoConfig

LINEAR = ("q_proj", "v_proj", "down_proj")


def requests(count: int, seed: int = 0) -> list[tuple[list[int], Sampling]]:
    """Prompts and settings of every kind: greedy and sampled, one sample and several, long, short and stopping."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        prompt = [int(token) for token in rng.integers(3, 60, size=rng.integers(1, 40))]
        greedy = {"temperature": 0.0} if n % 3 == 0 else {"temperature": 1.0 - n % 2 * 0.3, "top_k": n % 4 * 5}
        found.append(
            (
                prompt,
                Sampling(
                    max_tokens=int(rng.integers(1, 30)),
                    n=1 + n % 5 // 3 * 2,
                    seed=n,
                    stop_ids=(4, 5, 6) if n % 2 else (),
                    top_p=0.8 if n % 7 == 3 else 1.0,
                    **greedy,
                ),
            )
        )
    return found


def drive(batch: Any, arriving: dict[int, list[Any]], *, cancel: dict[int, int] | None = None) -> dict[int, Any]:
    """Step a batch, requests arriving before the steps named; completions by request, in the order of samples. Also
    holds every step's tokens against the completions."""
    numbers: dict[int, int] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    done: dict[int, dict[int, Completion]] = {}
    count = step = 0
    while len(batch) or any(at >= step for at in arriving):
        for prompt, sampling in arriving.get(step, ()):
            numbers[batch.add(prompt, sampling)] = count
            count += 1
        if cancel and step in cancel:
            batch.cancel(cancel[step])
        for one in batch.step():
            mine = tokens.setdefault((one.request, one.sample), [])
            mine.append(one.token)
            if one.completion is not None:
                assert one.completion.tokens == tuple(mine)
                assert one.completion.logprobs[-1] == one.logprob
                done.setdefault(numbers[one.request], {})[one.sample] = one.completion
        step += 1
    return {number: [of[sample] for sample in sorted(of)] for number, of in done.items()}


def same(found: list[Completion], alone: list[Completion]) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    assert [(one.text, one.stop) for one in found] == [(one.text, one.stop) for one in alone]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("waste", [decode.WASTE, 0], ids=["caches merge", "a cache each"])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("llama", None),
        pytest.param("qwen3", None, marks=pytest.mark.slow),
        ("llama", 16),
        pytest.param("qwen2", 16, marks=pytest.mark.slow),
    ],
)
def test_a_request_gets_what_it_gets_alone(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, config: str, size: int | None, waste: int
) -> None:
    """Heads of 16 have compiled attention: their steps are captured, and are others after each that joins or leaves."""
    monkeypatch.setattr(decode, "WASTE", waste)
    monkeypatch.setattr(capture, "WORTH_CAPTURING", 1)
    shape = kit.config(config) if size is None else kit.config(config, head_dim=size)
    engine = kit.engine(config=shape, adapter=kit.adapter(targets=LINEAR), micro_batch_tokens=10_000)
    asked = requests(24)
    arriving = {at: asked[at * 2 : at * 2 + 2] for at in range(12)}
    found = drive(engine.running_batch(), arriving)
    assert sorted(found) == list(range(24))
    for number, (prompt, sampling) in enumerate(asked):
        same(found[number], engine.generate([prompt], sampling)[0])


@pytest.mark.parametrize("size", [8, 16], ids=["matrix products", "compiled"])
def test_the_last_sample_of_a_prompt_keeps_it_when_another_request_joins(kit: SimpleNamespace, size: int) -> None:
    """Its prompt stands apart from what it wrote, though it is now the only row to read it."""
    engine = kit.engine(config=kit.config("llama", head_dim=size), micro_batch_tokens=10_000)
    prompt, other = list(range(5, 25)), ([7, 3, 9], Sampling(max_tokens=20, seed=5, stop_ids=()))
    first, second = engine.generate([prompt], Sampling(max_tokens=30, n=2, stop_ids=()))[0]
    early = next(token for token in second.tokens[:6] if token not in first.tokens)
    asked = [(prompt, Sampling(max_tokens=30, n=2, stop_ids=(early,))), other]
    found = drive(engine.running_batch(), {0: asked[:1], 8: asked[1:]})
    assert len(found[0][0].tokens) == 30 and len(found[0][1].tokens) < 8
    for number, (tokens, sampling) in enumerate(asked):
        same(found[number], engine.generate([tokens], sampling)[0])


@pytest.mark.parametrize(
    ("config", "lengths", "joined"),
    [({}, (34, 26, 30), True), ({}, (30, 4), False), ({"model_type": "mistral", "sliding_window": 8}, (30, 26), False)],
    ids=["alike", "one would be mostly padding", "windows"],
)
def test_rows_of_a_models_own_code_share_its_calls(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, config: Any, lengths: tuple[int, ...], joined: bool
) -> None:
    """One request comes each step. When the first has left, the columns go that only it had."""
    shape = AutoConfig.for_model(**kit.config().to_dict() | config)
    engine = kit.engine(config=shape, decoder="transformers", micro_batch_tokens=10_000)
    written = [12] + [32] * (len(lengths) - 1)
    asked = [
        (list(range(3, 3 + count)), Sampling(max_tokens=most, temperature=0.0, stop_ids=()))
        for count, most in zip(lengths, written, strict=True)
    ]
    widths, own = list[int](), TransformersBody.hidden

    def counting(self: TransformersBody, *given: Any, **more: Any) -> Any:
        out = own(self, *given, **more)
        widths.append(more["past_key_values"].get_seq_length())
        return out

    with monkeypatch.context() as within:
        within.setattr(TransformersBody, "hidden", counting)
        found = drive(engine.running_batch(), {at: [one] for at, one in enumerate(asked)})
    readings_while_others_write = steps = len(lengths) - 1
    assert len(widths) == (steps + 32 + readings_while_others_write if joined else sum(written))
    assert widths[-1] == lengths[-1] + 31
    for number, (tokens, sampling) in enumerate(asked):
        same(found[number], engine.generate([tokens], sampling)[0])


@pytest.mark.slow
def test_without_room_requests_wait_their_turn(kit: SimpleNamespace) -> None:
    """A budget of 4 x 40 positions: rows begin as others end, and a request too large for it goes in waves."""
    engine = kit.engine(micro_batch_tokens=40)
    asked = [*requests(8, seed=3), ([7, 8, 9], Sampling(max_tokens=60, n=5, seed=2, stop_ids=())), *requests(4, seed=4)]
    batch = engine.running_batch()
    for prompt, sampling in asked[:-1]:
        batch.add(prompt, sampling)
    batch.step()
    assert 0 < batch.waiting < len(asked) - 1
    found = drive(engine.running_batch(), {0: asked})
    for number, (prompt, sampling) in enumerate(asked):
        same(found[number], engine.generate([prompt], sampling)[0])


def test_a_body_whose_caches_cannot_join(kit: SimpleNamespace) -> None:
    engine = kit.engine(decoder="transformers")
    asked = requests(6, seed=5)
    found = drive(engine.running_batch(), {0: asked[:2], 3: asked[2:]})
    for number, (prompt, sampling) in enumerate(asked):
        same(found[number], engine.generate([prompt], sampling)[0])


def test_a_cancelled_request_leaves_and_changes_nobody(kit: SimpleNamespace) -> None:
    engine = kit.engine(micro_batch_tokens=10_000)
    asked = [(prompt, Sampling(max_tokens=20, n=2, seed=3, stop_ids=())) for prompt, _ in requests(4, seed=6)]
    found = drive(engine.running_batch(), {0: asked[:3], 2: asked[3:]}, cancel={4: 1})
    assert sorted(found) == [0, 2, 3]
    for number in found:
        same(found[number], engine.generate([asked[number][0]], asked[number][1])[0])
    batch = engine.running_batch()
    batch.cancel(batch.add(*asked[0]))
    batch.cancel(99)
    assert len(batch) == 0 and batch.step() == []


def test_equal_prompts_count_on_where_they_are_told(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    sampling = Sampling(max_tokens=8, n=2, seed=1, stop_ids=())
    batch = engine.running_batch()
    batch.add([5, 6], sampling)
    batch.add([5, 6], sampling, first=2)
    ended = {(one.request, one.sample): one.completion for _ in range(8) for one in batch.step() if one.completion}
    first, second = engine.generate([[5, 6], [5, 6]], sampling)
    same([ended[0, 0], ended[0, 1]], first)
    same([ended[1, 0], ended[1, 1]], second)


def test_changed_weights_end_a_batch(kit: SimpleNamespace, tmp_path: Any) -> None:
    engine = kit.engine()
    engine.export(tmp_path / "weights")
    batch = engine.running_batch()
    batch.add([5, 6], Sampling(max_tokens=8))
    batch.step()
    engine.restore(tmp_path / "weights")
    with pytest.raises(EngineError, match="weights changed"):
        batch.step()
    with pytest.raises(EngineError, match="empty"):
        engine.running_batch().add([], Sampling())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 16], ids=["matrix products", "compiled"])
def test_merged_caches_hold_what_both_held(size: int, dtype: torch.dtype) -> None:
    """Against attention over each row's own keys in float64."""
    rng = np.random.default_rng(0)
    heads, scale = 2, 0.5
    held: dict[int, list[Any]] = {}

    def new(names: list[int], lengths: list[int], room: int) -> KeyValueCache:
        like = torch.zeros(1, dtype=dtype)
        cache = KeyValueCache(lengths, 1, room, layers=1, kv_heads=heads, size=size, like=like)
        given = torch.from_numpy(rng.normal(size=(sum(lengths), 2 * heads, size))).to(dtype)
        places = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        begin = 0
        for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
            places[row, :length] = torch.arange(begin, begin + length)
            held[name] = list(given[begin : begin + length])
            begin += length
        cache.write_prompts(0, given, places)
        return cache

    def write(cache: KeyValueCache, names: list[int]) -> None:
        cache.advance()
        given = torch.from_numpy(rng.normal(size=(len(names), 3 * heads, size))).to(dtype)
        found = given.new_empty((len(names), heads * size))
        cache.attend(0, given, heads, Looks(scale), found)
        found = found.float().view(len(names), heads, size)
        for row, name in enumerate(names):
            held[name].append(given[row, heads:])
            keys, values = torch.stack(held[name]).double().chunk(2, 1)
            scores = torch.einsum("hd,chd->hc", given[row, :heads].double(), keys) * scale
            want = torch.einsum("hc,chd->hd", scores.softmax(-1), values)
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(found[row].double(), want, rtol=0, atol=tolerance)

    first, second = new([0, 1, 2], [9, 4, 2], room=50), new([3, 4], [3, 3], room=70)
    for _ in range(5):
        write(first, [0, 1, 2])
    write(second, [3, 4])
    assert first.retire([False, True, True]) == [2, 1]  # the longest has left: its columns need not be kept
    both = decode.merged(first, second)
    assert both.rows == 4 and both.columns == 9
    for _ in range(40):  # beyond a block of a dense cache
        write(both, [2, 1, 3, 4])
    third = decode.merged(both, new([5], [60], room=5))
    for _ in range(3):
        write(third, [2, 1, 3, 4, 5])
