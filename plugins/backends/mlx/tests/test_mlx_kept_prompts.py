"""Prompts that running batches have read: nothing is read twice, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_hooks import Datum, Sampling
from finetooth_kit.losses import WEIGHTED_NLL
from mlx_lm.models.cache import ConcatenateKVCache

GREEDY = Sampling(max_tokens=6, temperature=0.0, stop_ids=())


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(20, 60, size=count)]


@pytest.fixture
def engine(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> Any:
    folder = write(tmp_path, max_position_embeddings=1024)
    return engine_of(folder, micro_batch_tokens=500)


@pytest.fixture
def read(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and positions of what the network reads, but for single tokens."""
    counts: list[tuple[int, int]] = []
    body = engine._network.body

    def counting(given: Any, **more: Any) -> Any:
        counts.extend([given.shape] if given.shape[1] > 1 else [])
        return body(given, **more)

    monkeypatch.setattr(engine._network, "body", counting)
    return counts


def written(batch: Any, *prompts: list[int], sampling: Sampling = GREEDY, **more: Any) -> list[Any]:
    for prompt in prompts:
        batch.add(prompt, sampling, **more)
    done = {}
    while len(batch):
        done |= {(one.request, one.sample): one.completion for one in batch.step() if one.completion is not None}
    return [done[key] for key in sorted(done)]


def same(found: list[Any], wanted: list[Any]) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_the_next_turn_reads_what_is_new(engine: Any, read: list[tuple[int, int]]) -> None:
    """Past a block of mlx-lm's cache; `generate` reads all, keeps nothing, and drops nothing."""
    prompt, before = tokens(61), 0
    for turn in range(5):
        found = written(engine.running_batch(), prompt)
        (alone,) = engine.generate([prompt], GREEDY)
        assert read == [(1, len(prompt) - before), (1, len(prompt))]
        same(found, alone)
        read.clear()
        before, prompt = len(prompt), [*prompt, *found[0].tokens, *tokens(50, turn)]
    assert len(prompt) > 256


def test_samples_share_their_prompt(engine: Any, read: list[tuple[int, int]]) -> None:
    sampling = Sampling(max_tokens=5, n=3, seed=4, stop_ids=())
    prompts = [tokens(40), tokens(40, 1), tokens(33)]
    together = engine.generate(prompts, sampling)
    assert read == [(2, 40), (1, 33)]
    apart = [engine.generate([prompt], sampling)[0] for prompt in prompts]
    same([of for samples in together for of in samples][:3], apart[0])


def test_questions_behind_a_system_message(engine: Any, read: list[tuple[int, int]]) -> None:
    """Together with one that begins otherwise they are read whole, since a batch has one length."""
    system = tokens(50)
    written(engine.running_batch(), system)
    read.clear()
    questions = [[*system, *tokens(9, n)] for n in (1, 2)]
    found = written(engine.running_batch(), *questions)
    assert read == [(2, 9)]
    same(found, [engine.generate([question], GREEDY)[0][0] for question in questions])
    read.clear()
    written(engine.running_batch(), [*system, *tokens(9, 3)], tokens(59, 4))
    assert read == [(2, 59)]


def test_adapters_and_owners_have_prompts_of_their_own(
    engine: Any, read: list[tuple[int, int]], tmp_path: Path
) -> None:
    engine.export(tmp_path / "adapter")
    held, batch = engine.hold(tmp_path / "adapter"), engine.running_batch()
    for owner, adapter, new in (("a", None, 50), ("a", held, 50), ("b", None, 50), ("a", held, 0), ("b", None, 0)):
        read.clear()
        batch.owner = owner
        written(batch, tokens(50), adapter=adapter)
        assert [positions for _, positions in read] == [new] * (new > 0)
    batch.owner = "c"
    batch.add(tokens(70), GREEDY)
    batch.owner = "d"
    read.clear()
    written(batch, tokens(70))
    assert read == [(2, 70)]


@pytest.mark.parametrize("way", ["step", "set_weights", "load", "rollback", "snapshot", "failure"])
def test_nothing_outlives_its_weights(engine: Any, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.save(tmp_path / "before")
    snapshot, weights = engine.snapshot(), engine.weights()
    written(engine.running_batch(), tokens(50))
    assert engine._generator.kept.positions == 50
    if way == "step":
        engine.forward_backward([Datum.from_tokens(tokens(20))], WEIGHTED_NLL)
        engine.step()
    elif way == "set_weights":
        engine.set_weights(weights)
    elif way == "failure":
        monkeypatch.setattr(engine._network, "logits", None)
        with pytest.raises(TypeError):
            engine.generate([tokens(50)], GREEDY)
    else:
        ways = {"load": lambda: engine.load(tmp_path / "before"), "rollback": lambda: engine.rollback(snapshot)}
        ways.get(way, engine.snapshot)()
    assert engine._generator.kept.positions == 0


def test_it_stays_within_the_memory_of_a_batch(engine: Any) -> None:
    """2,000 positions, of which 300 + 6 are the request's own in the end."""
    for seed in range(8):
        written(engine.running_batch(), tokens(300, seed))
        assert engine._generator.kept.positions == min(seed + 1, 5) * 300
    engine.generate([tokens(900)], GREEDY)
    assert engine._generator.kept.positions == 900
    written(engine.running_batch(), tokens(1010))
    assert engine._generator.kept.positions <= 2000 - 1016


def test_it_leaves_room_for_other_batches(engine: Any) -> None:
    """Of 2,000 positions, one batch has 1,000: 800 of its prompt, 200 to write."""
    other, batch = engine.running_batch(), engine.running_batch()
    other.add(tokens(800), Sampling(max_tokens=200, temperature=0.0, stop_ids=()))
    other.step()
    for seed in range(1, 5):
        written(batch, tokens(300, seed))
        assert engine._generator.kept.positions + other.taken <= 2000 - 306
    engine.generate([tokens(200)], GREEDY)
    assert engine._generator.kept.positions + other.taken <= 2000 - 206


def test_other_caches_keep_nothing(engine: Any, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_mlx.cache.make_prompt_cache", lambda model: [ConcatenateKVCache() for _ in "12"])
    for _ in range(2):
        written(engine.running_batch(), tokens(50))
    assert read == [(1, 50), (1, 50)] and engine._generator.kept.positions == 0
