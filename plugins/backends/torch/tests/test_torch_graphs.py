"""Sampling with graphs, replayed by a stand-in on a CPU: see recorded_graphs.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Completion, Decision, PlanError, Sampling
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_torch.generation.kv_cache import KeyValueCache
from finetooth_torch.planning.graphs import choose_graphs, graph_bytes
from finetooth_torch.planning.memory import estimate

sys.path.insert(0, str(Path(__file__).parent))
from recorded_graphs import RecordedGraphs, Recorder  # type: ignore[import-not-found]

RANDOM = np.random.default_rng(5)
PROMPTS = [[int(token) for token in RANDOM.integers(2, 61, length)] for length in (3, 11, 19, 4, 9, 23, 7)]
ENDS = (7, 23, 42)
"""Enough ids that rows end at different times."""
STEPS = 40
SETTINGS = {
    "greedy": {"n": 1, "temperature": 0.0},
    "plain": {"n": 3, "temperature": 1.0},
    "warm": {"n": 1, "temperature": 1.3},
    "top_k": {"n": 3, "temperature": 1.0, "top_k": 20},
    "top_p": {"n": 1, "temperature": 0.9, "top_p": 0.8},
    "both": {"n": 3, "temperature": 1.2, "top_k": 20, "top_p": 0.7, "min_p": 0.02},
    "min_p": {"n": 1, "temperature": 1.0, "min_p": 0.05},
}


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_torch.generation.kv_cache.BUCKET", 8)
    RecordedGraphs.counts.clear()


def engine_of(kit: SimpleNamespace, **asked: Any) -> Any:
    """With torch's own operations, which the stand-in sees."""
    if kit.decoder != "auto":
        pytest.skip("transformers' cache grows with every token")
    return kit.engine(decoder="stream", kernels=kit.decoding(), **asked)


def sampled(
    engine: Any, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, *, device: str, prompts: Any = PROMPTS
) -> list[Completion]:
    """Completions on the CPU as it is, or as a device that has graphs: `off`, or `on`."""
    network = engine._parts.network
    with monkeypatch.context() as patch:
        patch.setattr("finetooth_torch.device.graphs.replays", lambda of: device != "cpu")
        graphs = RecordedGraphs if device == "on" else None
        patch.setattr(network, "compute", replace(network.compute, graphs=graphs))
        return [one for of in engine.generate(prompts, sampling) for one in of]


def told(completions: Sequence[Completion]) -> list[Any]:
    return [(of.tokens, of.logprobs, of.drawn_logprobs, of.kept, of.stop) for of in completions]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("named", SETTINGS)
def test_sampling_with_graphs_is_sampling_without_bit_for_bit(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str, named: str
) -> None:
    engine = engine_of(kit, precision=precision)  # with low-rank additions
    sampling = Sampling(max_tokens=STEPS, seed=3, stop_ids=ENDS, drawn=True, **SETTINGS[named])
    as_it_is, off, on = (sampled(engine, monkeypatch, sampling, device=device) for device in ("cpu", "off", "on"))
    assert told(on) == told(off)
    lengths = {len(of.tokens) for of in off}
    greedy = named == "greedy"  # which repeats itself
    assert len(lengths) > (1 if greedy else 3) and max(lengths) > 8, "rows end at different times, and the cache grows"
    counts = RecordedGraphs.counts
    assert counts["replays"] > counts["captures"] > 0, counts
    if precision == "fp32":  # rounding of bf16 is another where a product has other rows
        assert [of.tokens for of in on] == [of.tokens for of in as_it_is]
        for mine, other in zip(on, as_it_is, strict=True):
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_token_is_one_replay(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another graph for other rows, or another bucket of columns: else each step is one replay."""
    engine = engine_of(kit)
    sampling = Sampling(max_tokens=STEPS, n=2, seed=3, temperature=1.0, stop_ids=())
    on = sampled(engine, monkeypatch, sampling, device="on", prompts=PROMPTS[:2])
    assert {len(of.tokens) for of in on} == {STEPS}
    buckets = -(-(STEPS - 1) // 8)
    steps = {"warm": buckets, "captures": buckets, "replays": STEPS - 1 - buckets}
    assert RecordedGraphs.counts == steps, "the first token is the prompts'"


@pytest.mark.slow
def test_candidates_without_a_place_are_asked_for(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_torch.generation.sampling.LIKELIEST", 50)
    engine = engine_of(kit)
    sampling = Sampling(max_tokens=STEPS, seed=3, stop_ids=(), temperature=1.5, top_p=0.9, drawn=True)
    off, on = (sampled(engine, monkeypatch, sampling, device=device) for device in ("off", "on"))
    kept = [len(ids) for of in on for ids in of.kept]
    assert min(kept) <= 50 < max(kept) and told(on) == told(off)


@pytest.mark.slow
def test_rows_with_adapters_and_other_settings_join(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running batch: requests come and go, and one has a penalty, for which there is no graph."""
    engine = engine_of(kit)
    network, found = engine._parts.network, []
    requests = [
        Sampling(max_tokens=12, seed=1, temperature=1.0, stop_ids=()),
        Sampling(max_tokens=30, n=2, seed=2, temperature=1.0, stop_ids=ENDS),
        Sampling(max_tokens=9, seed=3, temperature=0.7, top_p=0.9, stop_ids=()),
        Sampling(max_tokens=20, seed=4, temperature=1.0, repetition_penalty=1.2, stop_ids=()),
        Sampling(max_tokens=40, seed=5, temperature=1.0, stop_ids=()),
    ]
    for graphs in (None, RecordedGraphs):
        with monkeypatch.context() as patch:
            patch.setattr("finetooth_torch.device.graphs.replays", lambda of: True)
            patch.setattr(network, "compute", replace(network.compute, graphs=graphs))
            batch = engine.running_batch()
            written: list[Any] = []
            for at in range(80):
                if at % 6 == 0 and at // 6 < len(requests):
                    batch.add(PROMPTS[at // 6], requests[at // 6])
                written += [(one.request, one.sample, one.token, one.logprob) for one in batch.step()]
            assert len(batch) == 0
            found.append(written)
    assert found[0] == found[1] and RecordedGraphs.counts["replays"] > 20


def test_the_stand_in_shows_a_number_of_the_host(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that the host names is the column of the capture, and what the host reads cannot be captured."""
    engine = engine_of(kit)
    sampling = Sampling(max_tokens=12, seed=3, temperature=1.0, stop_ids=())
    off = sampled(engine, monkeypatch, sampling, device="off")
    right = KeyValueCache.advance_on_device

    def by_the_host(cache: KeyValueCache) -> None:
        right(cache)
        cache._newest_1.fill_(cache.columns - 1)

    def asking(cache: KeyValueCache) -> None:
        right(cache)
        cache._newest_1.item()

    monkeypatch.setattr(KeyValueCache, "advance_on_device", by_the_host)
    assert told(sampled(engine, monkeypatch, sampling, device="off")) == told(off)
    assert told(sampled(engine, monkeypatch, sampling, device="on")) != told(off)
    monkeypatch.setattr(KeyValueCache, "advance_on_device", asking)
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        sampled(engine, monkeypatch, sampling, device="on")


def test_a_capture_changes_nothing_and_a_replay_computes_again() -> None:
    x, total, taken = torch.arange(4.0), torch.zeros(4), torch.zeros(1, dtype=torch.int64)
    with Recorder() as recorder:
        total += x
        taken += 1
        result = total.view(2, 2)[1] * 2
    recorder.undo()
    assert total.tolist() == [0.0] * 4 and taken.item() == 0
    recorder.replay()
    assert total.tolist() == [0.0, 1.0, 2.0, 3.0] and result.tolist() == [4.0, 6.0]
    x.fill_(1.0)
    recorder.replay()
    assert total.tolist() == [1.0, 2.0, 3.0, 4.0] and result.tolist() == [6.0, 8.0] and taken.item() == 2


STREAM = Decision("backend.decoder", "stream", "no padding")


def hardware(name: str) -> HardwareFacts:
    return HardwareFacts("made:up", (Device(name, f"a made-up {name}", 2**34),), ("bf16", "fp32"))


def test_the_recipe_decides_where_there_are_graphs() -> None:
    for wanted, value in ((True, True), (False, False), ("auto", False)):
        decided = choose_graphs(wanted, hardware("cuda:0"), STREAM, samples=True)  # type: ignore[arg-type]
        assert decided is not None and decided.value is value and decided.setting == "backend.graphs"
        assert choose_graphs(wanted, hardware("cuda:0"), STREAM, samples=False) is None  # type: ignore[arg-type]
    for device in ("cpu", "mps"):
        assert choose_graphs("auto", hardware(device), STREAM, samples=True) is None
        with pytest.raises(PlanError, match=f"backend.graphs=true: a made-up {device} has no graphs"):
            choose_graphs(True, hardware(device), STREAM, samples=True)
    own = Decision("backend.decoder", "transformers", "its layers have a window")
    with pytest.raises(PlanError, match="computed by transformers: its layers have a window") as raised:
        choose_graphs(True, hardware("cuda:0"), own, samples=True)
    assert raised.value.action == "set backend.graphs to auto or false"


def test_the_estimate_counts_a_graph(kit: SimpleNamespace) -> None:
    request = replace(
        kit.plan_request(kit.facts(kit.config()), hardware=hardware("cuda:0")), needs=frozenset({"generate"})
    )
    without, with_graphs = (
        estimate(request, "bf16", 4096, checkpointing=False, stream=True, graphs=graphs).total
        for graphs in (False, True)
    )
    assert with_graphs - without == graph_bytes(4 * 4096, kit.vocab) == 32 * kit.vocab * 2 * 4096
    assert graph_bytes(10**9, 10**6) == 2**30, "a larger one is not captured"


def test_a_graph_larger_than_the_estimate_is_not_captured(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetooth_torch.generation.replayed_steps.MOST_BYTES", 32 * kit.vocab * 2)
    engine = engine_of(kit)
    sampling = Sampling(max_tokens=6, seed=3, temperature=1.0, stop_ids=())
    for prompts, replays in ((PROMPTS[:3], 0), (PROMPTS[:2], 4)):
        RecordedGraphs.counts.clear()
        off, on = (sampled(engine, monkeypatch, sampling, device=of, prompts=prompts) for of in ("off", "on"))
        assert told(on) == told(off) and RecordedGraphs.counts["replays"] == replays
