"""Gradients of a step's earlier calls: a call that fails leaves their bits, and the plan counts what that takes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import LossSpec, UserError
from finetooth_torch.compute import TORCH
from finetooth_torch.offload.transfers import Transfers
from finetooth_torch.planning.memory import EARLIER, estimate
from finetooth_torch.updates.sharded_parameters import ShardedParameters
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count(storages((args, kwargs)), new=False)
        out = func(*args, **(kwargs or {}))
        self._count(storages(out), new=True)
        self.most = max(self.most, self.now)
        return out

    def _count(self, made: list[Any], *, new: bool) -> None:
        for storage in made:
            if storage._cdata not in self._seen:
                size = storage.nbytes() if new else 0
                self._seen.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def bits(engine: Any) -> list[bytes]:
    return [p.grad.numpy().tobytes() for _, p in engine._parts.parameters.named() if p.grad is not None]


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_call_that_fails_leaves_the_bits_of_earlier_ones(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str, on_host: bool
) -> None:
    copied: list[Tensor] = []
    put = Transfers.put
    monkeypatch.setattr(Transfers, "put", lambda self, tensor: (copied.append(tensor), put(self, tensor))[1])
    failing, whole = (kit.engine(adapter=kit.adapter(full=True), precision=precision) for _ in range(2))
    failing._apart = on_host
    micro_batches = []

    def breaks(outputs: Any, data: Any, state: Any) -> Any:
        micro_batches.append(data)
        if len(micro_batches) == 3:
            raise UserError("no third one")
        return kit.nll.fn(outputs, data, state)

    for engine in (failing, whole):
        engine.forward_backward(kit.data(6), kit.nll)
    before, tensors = bits(failing), len(failing._parts.parameters.gradients())
    assert not copied
    with pytest.raises(UserError, match="no third"):
        failing.forward_backward(kit.data(12, seed=1), LossSpec("test:breaks", breaks))
    assert bits(failing) == before
    assert len(copied) == (tensors if on_host else 0)
    for engine in (failing, whole):
        engine.forward_backward(kit.data(5, seed=2), kit.nll)
    assert bits(failing) == bits(whole) != before


class Divided:
    """A model whose parts of gradients the test gives."""

    def __init__(self) -> None:
        self.given: Mapping[str, Tensor] = {}

    def gradients(self) -> Mapping[str, Tensor]:
        given, self.given = self.given, {}
        return given


class BrokenOff(dict[str, Tensor]):
    """Parts of which the last cannot be had."""

    def get(self, name: str, default: Any = None) -> Any:
        if name == list(self)[-1]:
            raise KeyboardInterrupt
        return super().get(name, default)


@pytest.fixture
def sharded() -> ShardedParameters:
    """Two parameters, without the process group that dividing them takes."""
    made = ShardedParameters.__new__(ShardedParameters)
    made.names, made.masters = ("a", "b"), [nn.Parameter(torch.zeros(1000)) for _ in range(2)]
    made.live, made._sharded, made._accumulate = made.masters, Divided(), TORCH.accumulate  # type: ignore[assignment]
    return made


def parts(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {name: torch.randn(1000, generator=drawn).to(dtype) for name in ("a", "b")}


def test_divided_gradients_are_restored_without_copies(sharded: Any) -> None:
    sharded._sharded.given = parts(1)
    sharded.collect()
    with Peak() as peak:
        with sharded.untouched_on_failure():
            sharded._sharded.given = parts(2)
            made = peak.now
            sharded.collect()
        assert peak.most == made, "the sum is in the new parts"
    sums = [parts(1)[name] + parts(2)[name] for name in ("a", "b")]
    assert all(torch.equal(master.grad, total) for master, total in zip(sharded.masters, sums, strict=True))
    with pytest.raises(KeyboardInterrupt), sharded.untouched_on_failure(on_host=True):
        sharded._sharded.given = BrokenOff(parts(3))
        sharded.collect()
    assert all(torch.equal(master.grad, total) for master, total in zip(sharded.masters, sums, strict=True))


def test_divided_gradients_in_bf16_add_up_in_fp32(sharded: Any) -> None:
    for seed in (1, 2):
        sharded._sharded.given = parts(seed, torch.bfloat16)
        sharded.collect()
    wanted = parts(1, torch.bfloat16)["b"].float() + parts(2, torch.bfloat16)["b"].float()
    assert torch.equal(sharded.masters[1].grad, wanted)


def peak_of(engine: Any, data: list[Any], calls: int, loss: LossSpec) -> int:
    """The most that a step's calls hold in addition to weights and optimizer."""
    each = len(data) // calls
    with Peak() as peak:
        for call in range(calls):
            engine.forward_backward(data[each * call : each * (call + 1)], loss)
        most = peak.most
        engine.step()
    return most


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("full", [True, False])
def test_the_plan_counts_what_several_calls_hold(kit: SimpleNamespace, full: bool, precision: str) -> None:
    config = kit.config(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=4)
    adapter = kit.adapter(full=full, rank=64, targets=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"))
    engine = kit.engine(config=config, adapter=adapter, precision=precision, micro_batch_tokens=20)
    data = kit.data(24, longest=6)  # five tokens each: a call has several micro-batches of four rows
    one, three = (peak_of(engine, data, calls, kit.nll) for calls in (1, 3))
    request = kit.plan_request(kit.facts(config), trained=engine.info.trained, base_frozen=not full, several_calls=True)
    row = estimate(request, precision, 32, checkpointing=False, stream=True).parts[EARLIER]
    assert row == 4 * engine.info.trained
    assert three - one == pytest.approx(row, rel=0.05)
