"""Prompts that earlier calls read: nothing is read twice, and nothing else changes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, Sampling
from finetooth_kit.families import EXPERTS, LATENT, SIZES, tiny_model
from finetooth_native.stream_decoder import StreamDecoder
from finetooth_steps.kept_prompts import LEAST, Keeping, KeptPrompts, ReadPrompts
from finetooth_torch.decoder.bodies import TransformersBody
from finetooth_torch.generation.cached_step import TransformersDecoding
from transformers import AutoConfig

GREEDY = Sampling(max_tokens=12, temperature=0.0, stop_ids=())


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 60, size=count)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Positions of the prompts that the stream decoder or a model's own code reads together."""
    counts: list[int] = []
    hidden, own, whole = StreamDecoder.hidden, TransformersBody.hidden, TransformersDecoding.read

    def counting(self: StreamDecoder, stream: Any, *args: Any, **named: Any) -> Any:
        counts.append(len(stream))
        return hidden(self, stream, *args, **named)

    def reading(self: TransformersDecoding) -> Any:
        with monkeypatch.context() as within:
            within.setattr(TransformersBody, "hidden", counting_own)
            return whole(self)

    def counting_own(self: TransformersBody, given: Any, *args: Any, **named: Any) -> Any:
        counts.append(given.numel())
        return own(self, given, *args, **named)

    monkeypatch.setattr(StreamDecoder, "hidden", counting)
    monkeypatch.setattr(TransformersDecoding, "read", reading)
    yield counts


def engine(kit: SimpleNamespace, config: str = "llama", size: int = 16, **more: Any) -> Any:
    """Heads of 16 have compiled attention."""
    adapter = kit.adapter(targets=("q_proj", "v_proj", "down_proj"))
    named = {"micro_batch_tokens": 10_000, **more}
    return kit.engine(config=kit.config(config, head_dim=size), adapter=adapter, **named)


def drive(batch: Any) -> list[Any]:
    done: dict[tuple[int, int], Any] = {}
    while len(batch):
        done |= {(one.request, one.sample): one.completion for one in batch.step() if one.completion is not None}
    return [done[key] for key in sorted(done)]


def forget(engine: Any) -> None:
    with engine.averaged():
        pass


def same(found: list[Any], alone: list[Any], *, within: float = 1e-4) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=within)


@pytest.mark.parametrize(
    ("config", "size", "precision"),
    [("llama", 16, "fp32"), ("qwen3", 16, "bf16"), ("llama", 8, "fp32"), ("qwen2", 8, "fp32")],
)
def test_the_next_turn_reads_what_is_new(
    kit: SimpleNamespace, read: list[int], config: str, size: int, precision: str
) -> None:
    """Turns of a conversation, which end at any place of the kernel's blocks, in calls and in running batches. With the
    compiled kernel no bit is another than without what was kept."""
    own = kit.decoder == "transformers"
    bits = size == 16 and not own and "packed_linear" in kit.kernels()
    mine, fresh = (engine(kit, config, size, precision=precision) for _ in range(2))
    prompt: list[int] = tokens(61)
    before = 0
    for turn in range(5):
        sampling = Sampling(max_tokens=9 + 7 * turn, temperature=float(turn % 2), seed=turn, stop_ids=())
        read.clear()
        if turn % 2:
            (found,) = mine.generate([prompt], sampling)
        else:
            batch = mine.running_batch()
            batch.add(prompt, sampling)
            found = drive(batch)
        assert read == [len(prompt) - before]
        forget(fresh)
        read.clear()
        (alone,) = fresh.generate([prompt], sampling)
        assert read == [len(prompt)]
        same(found, alone, within=0 if bits else 0.02 if precision == "bf16" else 1e-4)
        before, prompt = len(prompt), [*prompt, *found[0].tokens, *tokens(23, turn)]


@pytest.mark.parametrize("together", [True, False])
def test_questions_behind_one_system_message(kit: SimpleNamespace, read: list[int], together: bool) -> None:
    """In a running batch, with several samples each: beginnings are read once more only where that reads less than
    sharing them among what begins together. Then a prompt again, of which only the last token is read. A model's own
    code reads equally many tokens of each: as many as are new in one of them."""
    mine, fresh = engine(kit), engine(kit)
    system, other = tokens(70), tokens(90, 1)
    mine.generate([system + tokens(20, 1)], GREEDY)
    asked = [system + tokens(9, 2), other + tokens(4, 3), system + tokens(33, 4)]
    if together:
        asked += [other + tokens(4, n) for n in range(5, 9)]
    batch, sampling = mine.running_batch(), Sampling(max_tokens=8, n=3, seed=5, stop_ids=())
    for prompt in asked:
        batch.add(prompt, sampling)
    read.clear()
    found = drive(batch)
    if kit.decoder == "transformers":
        assert read == [len(asked) * 94]
    else:
        assert read == [70 + 90 + 9 + 33 + 5 * 4] if together else read == [9 + 94 + 33]
    for n, prompt in enumerate(asked):
        forget(fresh)
        same(found[3 * n : 3 * n + 3], fresh.generate([prompt], sampling)[0])
    batch.add(asked[1], GREEDY)
    read.clear()
    drive(batch)
    assert read == [1]


def test_the_same_call_again_gives_the_same_bits(kit: SimpleNamespace, read: list[int]) -> None:
    """Prompts with shared beginnings, and with one that an earlier call had."""
    mine, system = engine(kit), tokens(70)
    mine.generate([system + tokens(20, 1)], GREEDY)
    asked = [system + tokens(count, count) for count in (9, 33, 14)]
    read.clear()
    found = [mine.generate(asked, GREEDY) for _ in range(2)]
    assert found[0] == found[1] and read == [3 * 103 if kit.decoder == "transformers" else 70 + 9 + 33 + 14] * 2
    asked = [tokens(40, 1), *(tokens(40, 1) + tokens(21, n) for n in range(2, 8)), tokens(30, 1) + tokens(9, 8)]
    narrow = engine(kit, micro_batch_tokens=100)  # several batches a call, of which the first has the longest prompts
    for one in (mine, narrow):
        found = [one.generate(asked, replace(GREEDY, max_tokens=20)) for _ in range(3)]
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("asked", ["logprobs", "save", "averaged", "weights", "rollback"])
def test_anything_but_sampling_drops_what_was_kept(
    kit: SimpleNamespace, read: list[int], asked: str, tmp_path: Any
) -> None:
    """A resumed run begins with nothing, so one that goes on must too; and no key outlives its weights."""
    mine, prompt = engine(kit), tokens(50)
    before = mine.snapshot()
    mine.generate([prompt], GREEDY)
    if asked == "averaged":
        with mine.averaged():
            pass
    else:
        call = {
            "logprobs": lambda: mine.logprobs(kit.data(2)), "save": lambda: mine.save(tmp_path),
            "weights": lambda: mine.set_weights(mine.weights()), "rollback": lambda: mine.rollback(before),
        }  # fmt: skip
        call[asked]()
    read.clear()
    mine.generate([[*prompt, 7]], GREEDY)
    assert read == [51]


def test_a_batch_ends_where_an_optimizer_updates_inside_backward(kit: SimpleNamespace) -> None:
    """With weights of two states its keys would reach the next call."""
    lomo = pytest.importorskip("finetooth_lomo.optimizers")
    optimizer = lomo.build_lomo(lomo.LomoOptions(learning_rate=0.5))
    mine = kit.engine(adapter=kit.adapter(full=True), optimizer=optimizer, max_grad_norm=0.0)
    batch = mine.running_batch()
    batch.add(tokens(5), Sampling(max_tokens=60, stop_ids=()))
    batch.step()
    mine.forward_backward(kit.data(3), kit.nll)
    batch.add(tokens(40, 1), GREEDY)
    with pytest.raises(EngineError, match="weights changed"):
        batch.step()
    batch = mine.running_batch()
    batch.add(tokens(40, 1), GREEDY)
    mine.step()  # an adapter may change weights now
    with pytest.raises(EngineError, match="weights changed"):
        batch.step()


def test_adapters_have_prompts_of_their_own(kit: SimpleNamespace, read: list[int], tmp_path: Any) -> None:
    trained = engine(kit)
    with torch.no_grad():
        for name, weight in (weights := trained.weights()).items():
            weights[name] = weight + torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight)
    trained.set_weights(weights)
    trained.export(tmp_path / "adapter")
    mine, prompt = engine(kit), tokens(50)
    held = mine.hold(tmp_path / "adapter")
    assert held is not None
    mine.generate([prompt], GREEDY)
    batch = mine.running_batch()
    batch.add(prompt, GREEDY, adapter=held)
    batch.add([*prompt, 7], GREEDY)
    read.clear()
    found = drive(batch)
    assert read == [2 * 50 if kit.decoder == "transformers" else 50 + 1]
    same(found[:1], trained.generate([prompt], GREEDY)[0])
    same(found[1:], engine(kit).generate([[*prompt, 7]], GREEDY)[0])
    kept = mine._generator.kept
    assert kept.find(prompt, held) is not None
    del batch, held, found
    gc.collect()
    assert all(owner is None or owner() is None for one in kept._reads for owner in one.adapters)


def test_owners_have_prompts_of_their_own(kit: SimpleNamespace, read: list[int]) -> None:
    """Nobody learns from the time of a request what another has asked."""
    batch = engine(kit).running_batch()
    read.clear()
    for owner in ("a", "b", "a"):
        batch.owner = owner
        batch.add(tokens(50), GREEDY)
        drive(batch)
    assert read == [50, 50, 1]


def test_owners_share_no_beginning_of_one_step(kit: SimpleNamespace, read: list[int]) -> None:
    batch, system = engine(kit).running_batch(), tokens(50)
    for owner, new in (("a", 1), ("b", 2)):
        batch.owner = owner
        batch.add([*system, *tokens(new, new)], GREEDY)
    read.clear()
    drive(batch)
    assert read == [2 * 52 if kit.decoder == "transformers" else 51 + 52]


def test_a_prompt_in_a_buffer_that_is_used_again(kit: SimpleNamespace) -> None:
    mine, fresh = engine(kit), engine(kit)
    buffer = np.array(tokens(50), dtype=np.int64)
    mine.generate([buffer], GREEDY)
    buffer[:] = tokens(50, 1)
    turn = [*tokens(50, 1), 7]
    same(mine.generate([turn], GREEDY)[0], fresh.generate([turn], GREEDY)[0])


def test_sampling_gets_its_room_back(kit: SimpleNamespace, read: list[int]) -> None:
    """400 positions: four rows of 60 tokens, of which 40 are prompts, leave room for three such prompts."""
    mine = engine(kit, micro_batch_tokens=100)
    kept, sampling = mine._generator.kept, Sampling(max_tokens=20, temperature=0.0, stop_ids=())
    for n in range(9):
        mine.generate([tokens(40, n)], sampling)
        assert kept.positions <= 400 - 60
    assert kept.positions == 320
    mine.generate([tokens(40, n) for n in range(4)], sampling)
    assert kept.positions <= 400 - 240
    mine.generate([tokens(150, 20)], Sampling(max_tokens=240, temperature=0.0, stop_ids=()))
    assert kept.positions == 0


def test_rows_of_a_running_batch_need_their_room(kit: SimpleNamespace) -> None:
    mine = engine(kit, micro_batch_tokens=100)
    kept, batch = mine._generator.kept, mine.running_batch()
    batch.add(tokens(40), Sampling(max_tokens=200, stop_ids=()))
    batch.step()
    assert batch.taken == 240
    for n in range(9):
        mine.generate([tokens(40, n)], Sampling(max_tokens=2, stop_ids=()))
        assert kept.positions <= 400 - 240 - 42


def test_what_was_used_last_is_kept_longest() -> None:
    kept = KeptPrompts()
    for n in range(3):
        prompt = tokens(40, n)
        kept.add(ReadPrompts.of([(prompt, None, "")], [np.arange(40)], [torch.zeros(40, 2, 4)]))
    assert kept.find([*tokens(40, 0), 5], None) is not None
    kept.fit(80)  # one was used
    assert kept.find(tokens(40, 0), None) is not None and kept.find(tokens(40, 1), None) is None
    longer = [*tokens(40, 0), *tokens(9, 9)]
    kept.add(ReadPrompts.of([(longer, None, "")], [np.arange(49)], [torch.zeros(49, 2, 4)]))
    assert kept.positions == 80 + 49
    found = kept.find(longer[: LEAST + 1], None)
    assert found is not None and len(found.rows) == LEAST
    assert kept.find(longer[:LEAST], None) is None
    assert kept.find([*longer, 5], None, call=frozenset()) is not None
    found = kept.find([*longer[:45], 5], None, call=frozenset())
    assert found is not None and len(found.rows) == 40, "the whole of another prompt"
    assert kept.find([*longer[:45], 5], None, call=frozenset({np.array(tokens(40, 0)).tobytes()})) is None
    assert kept.find([*longer[:39], 5], None, call=frozenset()) is None


ROTATED = {"model_type": "llama", **SIZES, "max_position_embeddings": 256}
OWN_CODE: dict[str, dict[str, Any]] = {
    "grouped": ROTATED,
    "latent": {**ROTATED, **LATENT, **EXPERTS, "model_type": "deepseek_v3"},
    "learned positions": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "slopes": {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "window": {**ROTATED, "model_type": "mistral", "sliding_window": 24},
    "state": {
        **ROTATED,
        "model_type": "qwen3_5_text",
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("kind", OWN_CODE)
def test_models_own_code_goes_on(kind: str, read: list[int]) -> None:
    """Three turns of prompts of which all, a part or nothing is known: the states before the next tokens are those of
    prompts that are read whole. Nothing is kept of layers with a window or a state."""
    config = AutoConfig.for_model(**{"vocab_size": 97, **OWN_CODE[kind]})
    body, kept = TransformersBody(tiny_model(config).base_model), KeptPrompts()
    first, second = [*tokens(61), *tokens(25, 2)], [*tokens(48, 1), *tokens(9, 3)]
    forgets = kind in ("window", "state")
    for asked, new in (([first[:61], second[:48]], 61), ([first[:81], second], 20), ([first, tokens(30, 4)], 30)):
        keeping, states = Keeping(kept, [(prompt, None, "") for prompt in asked], 1000), list[torch.Tensor]()
        for given in (keeping, None):
            rows = TransformersDecoding(body, config, asked, 2, device=torch.device("cpu"), keeping=given)
            with torch.no_grad():
                states.append(torch.stack([rows.read(), *(rows.advance(torch.arange(4) + n) for n in (3, 30))]))
            assert read.pop() == 2 * (new if given and not forgets else len(asked[0]))
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
        assert rows.computed.positions == 2 * len(asked[0])
    assert kept.positions == (0 if forgets else 2 * (61 + 81 + 86))


def test_angles_that_change_with_the_length_are_not_kept(kit: SimpleNamespace, read: list[int]) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    mine = kit.engine(config=kit.config(rope_parameters=scaling), decoder="transformers", micro_batch_tokens=10_000)
    for count in (40, 60):
        mine.generate([tokens(60)[:count]], GREEDY)
    assert read == [40, 60] and mine._generator.kept.positions == 0
