"""What trains in a model with images: the language model alone, where that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, RecipeError, Sampling


def engine_of(folder: Path, adapter: Any) -> Any:
    return finetooth.engine({"model": str(folder), "adapter": adapter, "train": {"precision": "fp32"}})


def trained(engine: Any) -> set[str]:
    return {name for name, parameter in engine._parts.network.model.named_parameters() if parameter.requires_grad}


def named(engine: Any) -> set[str]:
    return {name for name, _ in engine._parts.network.base.named_parameters()}


def test_the_decoder_alone_trains_with_frozen_towers(vision_model: Path) -> None:
    engine = engine_of(vision_model, {"name": "full", "freeze_mm_modules": True})
    wanted = {name for name in named(engine) if name.startswith(("model.language_model.", "lm_head."))}
    assert trained(engine) == wanted < named(engine)
    assert engine.info.trained == engine._request.trains.adapter.trained_parameters(
        engine._request.base.facts, engine._request.base.model.parameters
    )
    assert trained(engine_of(vision_model, "full")) == named(engine)


def test_unfrozen_parameters_are_those_that_match(vision_model: Path) -> None:
    patterns = [r"^model.language_model.layers.1.*", r"^lm_head.*", "embed_tokens"]
    engine = engine_of(vision_model, {"name": "freeze", "unfrozen_parameters": patterns})
    parts = ("model.language_model.layers.1.", "lm_head.", "model.language_model.embed_tokens.")
    assert trained(engine) == {name for name in named(engine) if name.startswith(parts)}
    with pytest.raises(RecipeError, match=r"matches no parameter of the model .begin with one of .*language_model"):
        engine_of(vision_model, {"name": "freeze", "unfrozen_parameters": [r"^language_model.model.*"]})


@pytest.mark.parametrize("targets", ["all-linear", "attention", ["q_proj", "down_proj"]])
def test_lora_leaves_towers_alone(vision_model: Path, targets: Any) -> None:
    engine = engine_of(vision_model, {"name": "lora", "rank": 2, "targets": targets})
    assert trained(engine) and all(name.startswith("model.language_model.layers.") for name in trained(engine))


def test_text_alone_goes_through_the_wrapper(vision_model: Path) -> None:
    """Rows without images, trained and asked: as the model answers through transformers."""
    import torch

    engine = engine_of(vision_model, "full")
    tokens = [5, 9, 100, 7, 4000, 12, 9, 3]
    (found,) = engine.logprobs([Datum.from_tokens(tokens)])
    model = engine._parts.network.base
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logits[i, token]) for i, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    ((answer,),) = engine.generate([tokens], Sampling(max_tokens=4, temperature=0))
    whole = [*tokens]
    for token in answer.tokens:
        with torch.no_grad():
            assert int(model(input_ids=torch.tensor([whole])).logits[0, -1].argmax()) == token
        whole.append(token)
