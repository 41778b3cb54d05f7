"""Adapters of several engines on one base: one copy of its weights, and nobody's numbers change."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Sampling
from finetooth_server.keys import Caller
from safetensors.numpy import load_file, save_file

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
SHARED = {"backend": {"name": "auto", "share_base": True}}


def base_weights(engine: Any) -> dict[str, Any]:
    return {
        name: p for name, p in engine._parts.network.model.named_parameters() if not p.requires_grad
    }  # fmt: skip


def trained(engine: Any, ask: SimpleNamespace, loss: Any, seed: int) -> Any:
    for n in range(3):
        engine.forward_backward(ask.data(seed + n), loss)
        engine.step()
    scores = engine.logprobs(ask.data(99))
    return [s.tolist() for s in scores], engine.generate([[5, 6, 7]], Sampling(max_tokens=9, seed=1))


def test_engines_share_the_base_and_nothing_else(context: Any, recipe: dict[str, Any], ask: SimpleNamespace) -> None:
    loss = context.context(recipe).loss("cross_entropy")
    other = {**recipe, "adapter": {"name": "lora", "rank": 2}, "train": {**recipe["train"], "seed": 8}}
    alone = [trained(context.engine(one), ask, loss, seed) for one, seed in ((recipe, 0), (other, 10))]
    engines = [context.engine({**one, **SHARED}) for one in (recipe, other)]
    first, second = (base_weights(engine) for engine in engines)
    assert first.keys() == second.keys() and all(first[name] is second[name] for name in first)
    before = {name: p.detach().clone() for name, p in first.items()}
    fresh = engines[1].logprobs(ask.data(99))
    together = [trained(engines[0], ask, loss, 0)]
    for a, b in zip(fresh, engines[1].logprobs(ask.data(99)), strict=True):
        assert np.array_equal(a, b)  # the other's training is not seen
    together.append(trained(engines[1], ask, loss, 10))
    assert together == alone
    assert all(bool((before[name] == p).all()) for name, p in first.items())


@pytest.mark.parametrize("quantization", ["int4", "mxfp4"])
def test_what_a_quantizer_stores_is_shared_too(
    context: Any, recipe: dict[str, Any], ask: SimpleNamespace, quantization: str
) -> None:
    """Tenants over one base in few bits: its codes are there once, and each has the numbers that it has alone."""
    recipe = {**recipe, "quantization": quantization}
    loss = context.context(recipe).loss("cross_entropy")
    other = {**recipe, "adapter": {"name": "lora", "rank": 2}}
    alone = [trained(context.engine(one), ask, loss, seed) for one, seed in ((recipe, 0), (other, 10))]
    engines = [context.engine({**one, **SHARED}) for one in (recipe, other)]
    first, second = (dict(engine._parts.network.base.named_buffers()) for engine in engines)
    codes = [name for name in first if name.endswith("codes")]
    assert len(codes) == 14 and all(first[name] is second[name] for name in codes)
    assert [trained(engine, ask, loss, seed) for engine, seed in zip(engines, (0, 10), strict=True)] == alone
    plain = context.engine({**recipe, **SHARED, "quantization": None})
    assert not any(name.endswith("codes") for name, _ in plain._parts.network.base.named_buffers())


def test_a_whole_fine_tune_has_weights_of_its_own(context: Any, recipe: dict[str, Any], ask: SimpleNamespace) -> None:
    loss = context.context(recipe).loss("cross_entropy")
    adapter = context.engine({**recipe, **SHARED})
    before = adapter.logprobs(ask.data(1))
    whole = context.engine({**recipe, **SHARED, "adapter": "full"})
    trained(whole, ask, loss, 0)
    assert all(np.array_equal(a, b) for a, b in zip(before, adapter.logprobs(ask.data(1)), strict=True))


def test_the_base_goes_with_its_last_engine(context: Any, recipe: dict[str, Any]) -> None:
    engines = [context.engine({**recipe, **SHARED}) for _ in range(2)]
    base = weakref.ref(next(iter(base_weights(engines[0]).values())))
    engines.pop()
    gc.collect()
    assert base() is not None
    engines.pop()
    gc.collect()
    assert base() is None


def test_several_bases_and_shapes_are_served_side_by_side(
    start: Any, context: Any, recipe: dict[str, Any], tiny: Path, tmp_path: Path, ask: SimpleNamespace
) -> None:
    """Each model has the losses of an engine of its own, while calls of all of them stand beside each other."""
    shutil.copytree(tiny, tmp_path / "other")
    weights = load_file(tiny / "model.safetensors")
    scaled = {name: 2 * values if "proj" in name else values for name, values in weights.items()}
    save_file(scaled, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    bases = {"tiny": recipe, "other": {**recipe, "model": str(tmp_path / "other")}}
    shapes = [("tiny", 2), ("other", 2), ("other", 5), ("tiny", 5)]
    service, data = start(models=bases), ask.data(0)
    made = [
        service.create_model(ME, service.open_session(ME), base, {"adapter": {"name": "lora", "rank": rank}}, face="t")
        for base, rank in shapes
    ]
    trained_numbers = [ask.result(service, ME, call)["trained"] for call in made]
    calls: list[list[Any]] = [[] for _ in made]
    for _ in range(2):
        for call, asked in zip(made, calls, strict=True):
            arguments = {"data": ask.sent(data), "loss": "cross_entropy"}
            asked.append(service.submit(ME, call.queue, "forward_backward", arguments, face="t"))
            service.submit(ME, call.queue, "step", {}, face="t")
    losses = [[ask.result(service, ME, call)["loss"] for call in asked] for asked in calls]
    for (base, rank), found in zip(shapes, losses, strict=True):
        engine = context.engine({**bases[base], "adapter": {"name": "lora", "rank": rank}})
        loss = context.context(bases[base]).loss("cross_entropy")
        alone = []
        for _ in range(2):
            alone.append(engine.forward_backward(data, loss).loss)
            engine.step()
        assert found == alone
    assert len({tuple(one) for one in losses}) == len(shapes) and losses[0][0] == losses[3][0] != losses[1][0]
    assert trained_numbers == [trained_numbers[0], trained_numbers[0], *[trained_numbers[0] * 5 // 2] * 2]
