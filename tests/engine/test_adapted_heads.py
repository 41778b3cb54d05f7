"""Heads with LoRA, as the operation `linear_logprob` computes them, against peft's own layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.torch_request import FACTS, TinyLlamaLoader

torch = pytest.importorskip("torch")
pytest.importorskip("finetooth_lora")

ROWS = 11


def adapted(tmp_path: Any, precision: str, **options: Any) -> tuple[Any, Any]:
    """A model whose head has LoRA and is no longer what it began as, and its adapter."""
    entries = [entry for entry in entries_of("finetooth_lora.plugin") if entry.kind == "adapter"]
    options = {"name": "lora", "rank": 4, "targets": ["lm_head"], **options}
    adapter = FakeContext(tmp_path, entries=tuple(entries)).build("adapter", options)
    model = TinyLlamaLoader().load("tiny", framework="torch", precision=precision, device="cpu")
    model = adapter.apply(model, FACTS, np.random.default_rng(0))
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
            parameter.data = parameter.data.to(torch.float64 if precision == "fp64" else torch.float32)
    return model, adapter


def head_of(model: Any, adapter: Any, compute: Any, **options: Any) -> Any:
    from finetooth_torch.heads.head import Projection

    facts, low_rank = FACTS.head, adapter.low_rank
    return Projection(lambda: model.lm_head, facts, FACTS.vocab_size, compute, low_rank=low_rank, **options)


def scored(model: Any, head: Any, *, right: bool = True) -> list[Any]:
    """Log-probabilities and the gradients of the states and of what trains, with and without the entropy.

    Args:
        right: the gradients come as expected.
    """
    draw = torch.Generator().manual_seed(2)
    like = model.model.embed_tokens.weight
    states = torch.randn(ROWS, FACTS.hidden_size, generator=draw).to(like).requires_grad_()
    targets = torch.randint(0, FACTS.vocab_size, (ROWS,), generator=draw)
    came = torch.rand(ROWS, generator=draw)
    trained = [states, *(p for p in model.lm_head.parameters() if p.requires_grad)]
    found = []
    for entropy in (False, True):
        logprobs, of_all = head.scores(states, targets, entropy=entropy, expected=came if right else came.flip(0))
        total = (logprobs * came).sum() if of_all is None else (logprobs * came).sum() + of_all.sum()
        found += [logprobs, *torch.autograd.grad(total, trained)]
    return found


@pytest.mark.parametrize(("precision", "allowed"), [("fp64", 1e-9), ("fp32", 1e-5), ("bf16", 3e-2)])
@pytest.mark.parametrize("options", [{}, {"rslora": True, "alpha": 5}, {"dora": True}], ids=str)
@pytest.mark.parametrize("right", [True, False])
def test_values_and_gradients_are_those_of_pefts_layer(
    options: dict[str, Any], precision: str, allowed: float, right: bool, tmp_path: Any
) -> None:
    """peft's in float64. With DoRA its layer is called."""
    from finetooth_torch.compute import TORCH

    model, adapter = adapted(tmp_path, precision, **options)
    ours = head_of(model, adapter, TORCH, chunk_bytes=4 * FACTS.vocab_size * 4)
    assert (ours.parts() is None) == bool(options.get("dora"))
    exact, _ = adapted(tmp_path, precision, **options)
    theirs = head_of(exact.double(), adapter, TORCH)
    theirs.parts = lambda: None
    for got, wanted in zip(scored(model, ours, right=right), scored(exact, theirs), strict=True):
        assert got.shape == wanted.shape
        assert float(((got.double() - wanted).norm() / wanted.norm()).detach()) < allowed


def test_logits_are_computed_once_and_nothing_as_large_as_the_head_is_made(tmp_path: Any) -> None:
    """Forward and backward multiply twice with the weight, and no tensor of its size comes to be."""
    from finetooth_torch.compute import TORCH
    from torch.utils._python_dispatch import TorchDispatchMode

    model, adapter = adapted(tmp_path, "fp32")
    head, weight = head_of(model, adapter, TORCH), model.lm_head.base_layer.weight
    products, largest = [], []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            sides = [of for of in args if isinstance(of, torch.Tensor)]
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                products.extend(of for of in sides if of.data_ptr() == weight.data_ptr())
            if isinstance(made, torch.Tensor) and made.data_ptr() != weight.data_ptr():
                largest.append(made.numel())
            return made

    states = torch.randn(ROWS, FACTS.hidden_size, requires_grad=True)
    targets = torch.arange(ROWS)
    with Watching():
        logprobs, _ = head.scores(states, targets, entropy=False, expected=torch.ones(ROWS))
        logprobs.sum().backward()
    assert len(products) == 2
    assert max(largest) < weight.numel()
    assert all(p.grad is not None and p.grad.any() for p in model.lm_head.parameters() if p.requires_grad)


def test_an_adapter_that_is_switched_off_leaves_the_plain_head(tmp_path: Any) -> None:
    from finetooth_torch.compute import TORCH

    model, adapter = adapted(tmp_path, "fp32")
    head, states = head_of(model, adapter, TORCH), torch.randn(ROWS, FACTS.hidden_size)
    targets, plain = (
        torch.arange(ROWS),
        TinyLlamaLoader().load("tiny", framework="torch", precision="fp32", device="cpu"),
    )
    with torch.no_grad():
        wanted = torch.log_softmax(states @ plain.lm_head.weight.t(), -1).gather(1, targets[:, None])[:, 0]
        with adapter.disabled(model):
            assert torch.allclose(head.scores(states, targets, entropy=False)[0], wanted, atol=1e-5)
        assert not torch.allclose(head.scores(states, targets, entropy=False)[0], wanted, atol=1e-2)


def test_a_provider_that_takes_no_addition_leaves_the_head_to_its_module(tmp_path: Any) -> None:
    from dataclasses import replace

    from finetooth_torch.compute import TORCH

    model, adapter = adapted(tmp_path, "fp32")
    whole, apart = (head_of(model, adapter, compute) for compute in (TORCH, replace(TORCH, adds=False)))
    assert whole.parts() is not None and apart.parts() is None
    for got, wanted in zip(scored(model, whole), scored(model, apart), strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_the_factors_of_an_addition_may_lie_apart() -> None:
    from finetooth_native.operations import linear_logprob

    draw = torch.Generator().manual_seed(3)
    states, weight, rows, b = (
        torch.randn(shape, generator=draw).bfloat16() for shape in ((7, 32), (40, 32), (7, 8), (40, 8))
    )
    wanted = linear_logprob(states, weight, torch.arange(7), added=(rows, b)).logprobs
    apart = [torch.stack([of, of], -1)[..., 0] for of in (rows, b)]
    for added in ((apart[0], b), (rows, apart[1])):
        assert torch.equal(linear_logprob(states, weight, torch.arange(7), added=added).logprobs, wanted)
