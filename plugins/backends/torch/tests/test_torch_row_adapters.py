"""Rows of several adapters in one running batch: each gets what its adapter gets alone, whoever is beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Completion, EngineError, Sampling, UserError
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_native.operations import sums_wide

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = ((2, ("q_proj", "v_proj", "down_proj")), (3, ALL), (8, ("up_proj",)), (4, ALL), (70, ("k_proj", "o_proj")))
"""Ranks, an odd one and one beyond what stands on a diagonal, and targets."""

WAYS = ("compiled", "torch", "transformers")
"""The stream decoder with compiled products and with torch's, and the model's own code."""


@dataclass
class Held:
    """A host, and what it holds: each adapter's own engine beside it, and the base's."""

    host: Any
    engines: Sequence[Any]
    adapters: Sequence[Any]


@pytest.fixture(params=WAYS, scope="module")
def held(request: pytest.FixtureRequest, kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Held:
    return make(kit, tmp_path_factory.mktemp("adapters"), request.param)


def make(kit: SimpleNamespace, folder: Path, way: str, precision: str = "fp32") -> Held:
    if kit.decoder == "transformers":
        pytest.skip("it names its ways itself")
    kernels = kit.kernels()
    if way == "compiled" and "packed_linear" not in kernels:
        pytest.skip("no compiled kernels here")
    if way == "torch":
        kernels = {name: one for name, one in kernels.items() if name == "stream_decoder"}
    decoder = "transformers" if way == "transformers" else "auto"
    settings: dict[str, Any] = {
        "decoder": decoder, "kernels": kernels, "precision": precision, "micro_batch_tokens": 512,
        "config": kit.config(head_dim=16),  # whose attention has compiled kernels
    }  # fmt: skip
    host = kit.engine(adapter=kit.adapter(dropout=0.3), **settings)
    engines, adapters = [host], [None]
    for number, (rank, targets) in enumerate(SHAPES):
        engine = kit.engine(adapter=kit.adapter(rank=rank, targets=targets), seed=number + 1, **settings)
        path = folder / str(number)
        engine.export(path)
        engines.append(engine)
        adapters.append(host.hold(path))
        assert adapters[-1] is not None
    bare = kit.engine(adapter=kit.adapter(zero=True), **settings)
    return Held(host, [*engines, bare], [*adapters, host.hold(None)])


def requests(
    drawn: np.random.Generator, vocab: int, adapters: int, count: int
) -> list[tuple[list[int], Sampling, int]]:
    """Prompts, some with a beginning in common, settings and adapters."""
    stem = drawn.integers(2, vocab, 24).tolist()
    found = []
    for number in range(count):
        own = drawn.integers(2, vocab, int(drawn.integers(1, 12))).tolist()
        kind = number % 3
        sampling = Sampling(
            max_tokens=int(drawn.integers(8, 14)), n=2 if number % 4 == 3 else 1, seed=int(drawn.integers(99)),
            temperature=(0.0, 1.0, 0.7)[kind], top_k=(0, 0, 9)[kind], stop_ids=(),
        )  # fmt: skip
        found.append((stem + own if number % 2 else own, sampling, int(drawn.integers(adapters))))
    return found


def drive(batch: Any, asked: Sequence[Any], adapters: Sequence[Any], joins: Sequence[int], cancelled: int) -> Any:
    """Completions of each request by sample; `joins` says before which step each comes."""
    numbers: dict[int, int] = {}
    found: dict[int, dict[int, Completion]] = {n: {} for n in range(len(asked))}
    step = 0
    while step <= max(joins) or len(batch):
        for n, (prompt, sampling, which) in enumerate(asked):
            if joins[n] == step:
                numbers[batch.add(prompt, sampling, adapter=adapters[which])] = n
        if step == max(joins):
            batch.cancel(next(number for number, n in numbers.items() if n == cancelled))
        for one in batch.step():
            if one.completion is not None:
                found[numbers[one.request]][one.sample] = one.completion
        step += 1
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_each_gets_what_it_gets_alone(held: Held, kit: SimpleNamespace, seed: int) -> None:
    """Mixes of adapters, ranks, lengths, settings, joins and leaves, against an engine of each adapter's own."""
    drawn = np.random.default_rng(seed)
    asked = requests(drawn, kit.vocab, len(held.adapters), 14)
    joins = [0, 0, 0, 0, *drawn.integers(0, 9, 10).tolist()]
    found = drive(held.host.running_batch(), asked, held.adapters, joins, cancelled=2)
    for n, (prompt, sampling, which) in enumerate(asked):
        if n == 2:
            continue
        alone = held.engines[which].generate([prompt], sampling)[0]
        for sample, wanted in enumerate(alone):
            one = found[n][sample]
            assert (one.tokens, one.text, one.stop) == (wanted.tokens, wanted.text, wanted.stop), (n, which, sample)
            np.testing.assert_allclose(one.logprobs, wanted.logprobs, atol=1e-4)


def test_compiled_products_leave_no_difference(kit: SimpleNamespace, tmp_path: Path) -> None:
    """In bfloat16, where compiled products take all that is multiplied, log-probabilities too are the same bit for
    bit."""
    if not sums_wide(torch.ones(4, 4, dtype=torch.bfloat16)):
        pytest.skip("no compiled products of bfloat16 here")
    held = make(kit, tmp_path, "compiled", "bf16")
    asked = requests(np.random.default_rng(5), kit.vocab, len(held.adapters), 10)
    found = drive(held.host.running_batch(), asked, held.adapters, [0] * 5 + [3] * 5, cancelled=0)
    for n, (prompt, sampling, which) in list(enumerate(asked))[1:]:
        alone = held.engines[which].generate([prompt], sampling)[0]
        assert [one.logprobs for _, one in sorted(found[n].items())] == [one.logprobs for one in alone], (n, which)


def test_what_is_held_stays_what_it_was(held: Held, kit: SimpleNamespace, tmp_path: Path) -> None:
    """An engine trains on while the snapshot that it exported is sampled by another, and the folder goes."""
    engine = kit.engine(adapter=kit.adapter(rank=5), decoder="auto")
    host = kit.engine(adapter=kit.adapter(), decoder="auto")
    engine.export(tmp_path / "snapshot")
    adapter, sampling = host.hold(tmp_path / "snapshot"), Sampling(max_tokens=12, temperature=0.0, stop_ids=())
    (before,) = engine.generate([[5, 6, 7]], sampling)
    batch = host.running_batch()
    batch.add([5, 6, 7], sampling, adapter=adapter)
    written = batch.step()
    engine.forward_backward(kit.data(), WEIGHTED_NLL)
    engine.step()
    engine.export(tmp_path / "snapshot")
    while len(batch):
        written += batch.step()
    assert tuple(one.token for one in written) == before[0].tokens


def test_what_is_more_than_an_addition_is_not_held(kit: SimpleNamespace, tmp_path: Path) -> None:
    host = kit.engine(adapter=kit.adapter())
    for targets in (("lm_head",), ("q_proj", "lm_head")):
        path = tmp_path / "-".join(targets)
        kit.engine(adapter=kit.adapter(targets=targets)).export(path)
        assert host.hold(path) is None
    with pytest.raises(EngineError, match="several adapters in one batch"):
        kit.engine(adapter=kit.adapter(full=True)).hold(None)


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_held_where_the_engines_own_adapter_reaches_every_row(kit: SimpleNamespace, stream: bool) -> None:
    """The head's addition would be that of all rows, of the base's too."""
    more = {} if stream else {"decoder": "transformers"}
    assert kit.engine(adapter=kit.adapter(targets=("q_proj",)), **more).hold(None) is not None
    assert kit.engine(adapter=kit.adapter(targets=("q_proj", "lm_head")), **more).hold(None) is None


def test_an_adapter_of_another_model_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    wide, deep = kit.config(hidden_size=32), kit.config(num_hidden_layers=3)
    for name, config in (("wide", wide), ("deep", deep)):
        kit.engine(adapter=kit.adapter(), config=config).export(tmp_path / name)
        with pytest.raises(UserError, match="use the model of the run it comes from"):
            kit.engine(adapter=kit.adapter()).hold(tmp_path / name)


def test_an_adapter_that_another_engine_holds_is_refused(kit: SimpleNamespace) -> None:
    host, other = kit.engine(adapter=kit.adapter()), kit.engine(adapter=kit.adapter())
    with pytest.raises(EngineError, match="does not hold this adapter"):
        host.running_batch().add([3], Sampling(max_tokens=2), adapter=other.hold(None))


def test_the_base_is_multiplied_with_once(kit: SimpleNamespace, tmp_path: Path) -> None:
    """However many adapters there are, a step calls no more kernels than with one."""
    held = make(kit, tmp_path, "compiled")
    counted: dict[int, int] = {}
    every = [held.adapters[n] for n in (4, 1, 2, 3, 5)]  # the first adds to all modules
    for count in (1, 5):
        batch = held.host.running_batch()
        for adapter in every[:count]:
            batch.add([7, 8, 9], Sampling(max_tokens=9, temperature=0.0, stop_ids=()), adapter=adapter)
        batch.step()
        counted[count] = kernel_calls(batch.step)
    assert counted[5] == counted[1] > 0


def kernel_calls(step: Any) -> int:
    from finetooth_kernels.capture import NOTED

    NOTED.calls = []
    try:
        step()
        return len(NOTED.calls)
    finally:
        NOTED.calls = None
