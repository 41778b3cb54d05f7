"""`finetooth.quantize`, `dequantize`, `offload`: a model and an optimizer from Python, as a recipe would have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, PluginError, RecipeError
from finetooth_torchshared.quantised import is_quantised
from transformers import AutoModelForCausalLM


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def test_it_computes_as_the_recipe_does_and_back_again(
    model: Any, recipe: Callable[..., dict[str, Any]], tiny_model: Path
) -> None:
    pick = {"name": "int4", "group": 32}
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert finetooth.quantize(model, pick) is model and is_quantised(model)
    ids = list(range(20, 60))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = logits[torch.arange(39), torch.tensor(ids[1:])]
    engine = finetooth.session(recipe(quantization=pick, train={"precision": "fp32"})).engine
    np.testing.assert_allclose(engine.logprobs([Datum.from_tokens(ids)])[0], found.numpy(), atol=2e-5)
    assert finetooth.dequantize(model) is model and not is_quantised(model)
    with torch.no_grad():
        again = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == plain.keys()
    moved = max(float((tensor - plain[name]).abs().max()) for name, tensor in model.state_dict().items())
    assert 0 < moved < 0.1


def test_what_cannot_be_is_said_in_the_recipes_words(model: Any) -> None:
    with pytest.raises(RecipeError, match=r"quantization\.group"):
        finetooth.quantize(model, {"name": "int4", "group": 33})
    with pytest.raises(PluginError, match="int5"):
        finetooth.quantize(model, "int5")
    with pytest.raises(RecipeError, match="gptq is calibrated with rows of a recipe's data"):
        finetooth.quantize(model, "gptq")
    finetooth.quantize(model, "int8")
    with pytest.raises(RecipeError, match="quantised already"):
        finetooth.quantize(model, "int8")
    with pytest.raises(RecipeError, match="unknown precision 'fp12'"):
        finetooth.dequantize(model, precision="fp12")


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_optimizer_goes_on_with_its_state_elsewhere_bit_for_bit(where: str) -> None:
    """In the middle of its steps, with a scheduler of the optimizer as it was; and from what was saved."""
    runs = []
    for moves in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 4))
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        for step in range(6):
            if step == 2 and moves:
                optimizer = finetooth.offload(optimizer, where)
            if step == 4 and moves:
                saved = optimizer.state_dict()
                optimizer = finetooth.offload(torch.optim.AdamW(model.parameters(), lr=7.0), where)
                optimizer.load_state_dict(saved)
                scheduler.optimizer = optimizer
            model(torch.randn(8, 20)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        runs.append([parameter.detach() for parameter in model.parameters()])
    assert all(map(torch.equal, *runs))


def test_an_optimizer_that_cannot_be_offloaded_is_refused() -> None:
    weights = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(RecipeError, match=r"optimizer\.offload: unknown place 'gpu'"):
        finetooth.offload(torch.optim.AdamW(weights), "gpu")
    with pytest.raises(RecipeError, match="L-BFGS"):
        finetooth.offload(torch.optim.LBFGS(weights))
    with pytest.raises(RecipeError, match="already"):
        finetooth.offload(finetooth.offload(torch.optim.AdamW(weights)), "disk")
