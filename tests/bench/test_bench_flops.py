"""FLOP formulas against torch's own counter, which counts every matrix product that is dispatched."""

from __future__ import annotations

from typing import Any

import pytest
from harness import flops
from harness.flops import Shape, Work

ROWS, LENGTH = 2, 24


@pytest.fixture
def model() -> Any:
    """A small Llama whose embedding and head are two weights."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def counted(model: Any, *, recompute: bool = False) -> float:
    """Forward and backward under the counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if recompute:
        model.train()
        model.activation_checkpointing_enable()
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 96
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return float(counter.get_total_flops())


def work() -> Work:
    return Work(ROWS * LENGTH, ROWS * LENGTH, ROWS * LENGTH**2)


def test_a_full_fine_tune(model):
    shape = Shape.of(model.config.to_dict())
    # the rotary embedding multiplies positions by frequencies as a matrix product; it is not counted
    assert flops.training(shape, work()) == pytest.approx(counted(model), rel=2e-3)


def test_gradient_checkpointing_computes_the_layers_again(model):
    shape = Shape.of(model.config.to_dict())
    assert flops.training(shape, work(), recompute=True) == pytest.approx(counted(model, recompute=True), rel=2e-3)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_lora_pays_no_weight_gradient_of_the_base(model, recompute):
    peft = pytest.importorskip("peft")
    shape = Shape.of(model.config.to_dict())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    model.enable_input_require_grads()  # so that gradients flow through the first layer too
    expected = counted(adapted, recompute=recompute)
    assert flops.training(shape, work(), rank=4, recompute=recompute) == pytest.approx(expected, rel=2e-3)


def test_a_forward(model):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape.of(model.config.to_dict())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False)
    assert flops.forward(shape, work()) == pytest.approx(float(counter.get_total_flops()), rel=2e-3)
