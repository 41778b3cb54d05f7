"""`finetooth.quantize` and `finetooth.dequantize`: a model from Python, as a recipe would have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, PluginError, RecipeError
from finetooth_toolbox.torch.quantised import is_quantised
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
    with pytest.raises(RecipeError, match="there is no 'fp12'"):
        finetooth.dequantize(model, precision="fp12")
