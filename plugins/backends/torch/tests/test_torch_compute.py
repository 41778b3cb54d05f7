"""The engine computes with the operations that it was given, and with no others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import PlanError, Sampling
from finetooth_hooks.protocols import Experts, LayerFacts, LowRank, PickedKernel
from finetooth_kernels.operations import OPERATIONS
from finetooth_kit.fake_context import FACTS
from finetooth_torch.compute import ALWAYS, DECODER, PRODUCTS, STREAM, Compute, check_products
from finetooth_torch.generation.generator import Generator
from finetooth_torch.planning.experts import experts_form
from torch import Tensor, nn


def counted(name: str, function: Any, calls: dict[str, int]) -> PickedKernel:
    def call(*given: Any, **named: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        return function(*given, **named)

    return PickedKernel("test", call)


@pytest.mark.parametrize("way", ["torch", "reference"])
@pytest.mark.parametrize(("kind", "without"), [("llama", "norm_rotary"), ("qwen3", "rotary")])
def test_what_is_given_is_called(kit: SimpleNamespace, way: str, kind: str, without: str) -> None:
    """Torch's way and the references train alike; each operation is one of those that were given."""
    calls: dict[str, int] = {}
    kernels = {
        name: counted(name, function, calls)
        for name, one in OPERATIONS.items()
        if name != DECODER and (function := getattr(one, way)) is not None
    } | kit.decoding()
    settings = {"config": kit.config(kind), "precision": "bf16"}
    engine = kit.engine(kernels=kernels, adapter=kit.adapter(zero=True), **settings)
    calls.clear()
    data = kit.data()
    engine.forward_backward(data, kit.nll)
    engine.generate([[5, 6, 7]], Sampling(max_tokens=3, temperature=1.0))
    wanted = {*ALWAYS, *(STREAM if kit.decoder == "auto" else ())} - {"keyed_dropout", without}  # nothing drops
    assert wanted <= calls.keys() and {"matmul_rounded_once"}.isdisjoint(calls)
    other = kit.engine(kernels=kit.decoding(), adapter=kit.adapter(zero=True), **settings)
    other.forward_backward(data, kit.nll)
    assert kit.relative(kit.gradients(engine), kit.gradients(other)) < (1e-12 if way == "torch" else 0.05)


def test_products_are_made_by_whom_the_recipe_names(kit: SimpleNamespace) -> None:
    """With the reference gradients are the same; a decoder of halved products is found out."""
    if kit.decoder != "auto":
        pytest.skip("the model's own code makes its products")
    data, calls = kit.data(), dict[str, int]()
    reference = OPERATIONS[PRODUCTS].reference

    def halves(*given: Any, **named: Any) -> Any:
        found = reference(*given, **named)
        return found.mul_(0.5)

    def gradients(function: Any) -> Any:
        kernels = kit.decoding() | ({} if function is None else {PRODUCTS: counted(PRODUCTS, function, calls)})
        engine = kit.engine(kernels=kernels, precision="fp32", adapter=kit.adapter(zero=True))
        engine.forward_backward(data, kit.nll)
        return kit.gradients(engine)

    wanted = gradients(None)
    assert not calls
    assert kit.relative(gradients(reference), wanted) < 1e-5 and calls
    with pytest.raises(PlanError, match="stream decoder computes something else"):
        gradients(halves)


def test_products_of_who_multiplies_itself_are_refused_to_others() -> None:
    products = PickedKernel("acme:products", OPERATIONS[PRODUCTS].reference)
    linear = PickedKernel("finetooth-torch:reference", OPERATIONS["low_rank_linear"].reference)
    check_products({"low_rank_linear": linear})
    check_products({PRODUCTS: products})  # nobody was picked for the layers, which is torch's way
    check_products({PRODUCTS: products, "low_rank_linear": replace(linear, features=frozenset({"multiply"}))})
    with pytest.raises(PlanError, match="acme:products: finetooth-torch:reference computes low_rank_linear, and makes"):
        check_products({PRODUCTS: products, "low_rank_linear": linear})


def test_log_probabilities_are_the_same_in_training_and_in_scoring(kit: SimpleNamespace) -> None:
    engine = kit.engine(precision="bf16", adapter=kit.adapter())
    data = kit.data()
    trained = [outputs["logprobs"] for outputs in engine.forward(data).outputs]
    for one, other in zip(trained, engine.logprobs(data), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sampling_on_accelerators_multiplies_as_who_scores() -> None:
    """The head's product is of the provider of `linear_logprob`, in full precision, however few tokens are wanted."""
    head, asked = nn.Linear(4, 9, dtype=torch.bfloat16), []

    def pack(weight: Tensor, bias: Tensor | None) -> Any:
        return lambda x, dtype: asked.append(dtype) or nn.functional.linear(x.to(dtype), weight.to(dtype))

    def sampled(provider: str, *added: Any) -> Any:
        kernels = {"linear_logprob": PickedKernel("acme:head", pack), "packed_linear": PickedKernel(provider, pack)}
        tokenizer: Any = None
        network: Any = SimpleNamespace(compute=Compute.of(kernels), config=None)
        generator = Generator(network, tokenizer, (), device=torch.device("meta"), tokens=8)
        return generator._packed_head(LowRank(head, *added), False)

    x = torch.ones(2, 4, dtype=torch.bfloat16)
    plain = sampled("acme:head")(x)
    assert plain.dtype == torch.float32
    assert asked == [torch.float32]
    assert sampled("other:head") is None  # who scores rounds as torch's module does
    draw = torch.Generator().manual_seed(0)
    a, b = (nn.Parameter(torch.randn(shape, generator=draw).bfloat16().float()) for shape in ((3, 4), (9, 3)))
    adapted = sampled("acme:head", a, b, 2.0)
    wanted = plain.double() + 2 * (x.double() @ a.double().t()).bfloat16().double() @ b.double().t()
    with torch.no_grad():
        b.zero_()  # a later step
    torch.testing.assert_close(adapted(x).double(), wanted, rtol=1e-2, atol=1e-2)
    assert sampled("other:head", a, b, 2.0) is None


def test_the_plan_says_how_experts_with_lora_are_multiplied() -> None:
    """Mixtral's are few and large, Qwen3-30B-A3B's many; of four of 8192 x 1536 only one of two products is large."""

    def said(count: int, hidden: int, width: int, *features: str) -> Any:
        layer = LayerFacts("attention", {}, {}, experts=Experts(count, 2, width))
        picked = {"grouped_matmul": PickedKernel("acme:groups", print, frozenset(features))}
        facts = replace(FACTS, hidden_size=hidden, per_layer=(layer, layer))
        return [(one.setting, one.value, one.reason) for one in experts_form(facts, picked)]

    both = ("fused", "split")
    [(setting, value, reason)] = said(8, 4096, 14336, *both)
    assert (setting, value) == ("kernels.grouped_matmul.form", "split")
    assert reason.startswith("experts, 8 of 4096 x 28672 and 8 of 14336 x 4096: few and large")
    [(_, value, reason)] = said(128, 2048, 768, *both)
    assert value == "fused" and "128 of 2048 x 1536 and 128 of 768 x 2048: one kernel" in reason
    [(_, value, reason)] = said(4, 8192, 1536, *both)
    assert value == "split and fused" and "4 of 8192 x 3072: few" in reason and "4 of 1536 x 8192: one" in reason
    assert not said(8, 4096, 14336, "fused") and not said(8, 4096, 14336)
    undescribed = replace(FACTS, per_layer=(LayerFacts("attention", {}, {}),))
    assert experts_form(undescribed, {"grouped_matmul": PickedKernel("acme:groups", print, frozenset(both))}) == ()
