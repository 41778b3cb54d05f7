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


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_a_convolution_trains_and_merges_as_peft_merges_it(qwen3_vl: Path, dora: bool, tmp_path: Path) -> None:
    import torch
    from finetooth_core.cli import main
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    engine = engine_of(qwen3_vl, {"name": "lora", "rank": 2, "targets": ["patch_embed.proj"], "dora": dora})
    request = engine._request
    planned = request.trains.adapter.trained_parameters(request.base.facts, request.base.model.parameters)
    assert trained(engine) and all("patch_embed.proj" in name for name in trained(engine))
    assert engine.info.trained == planned
    generator = torch.Generator().manual_seed(3)
    for parameter in engine._parts.network.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    engine.export(tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    model, found = map(AutoModelForImageTextToText.from_pretrained, (qwen3_vl, tmp_path / "merged"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    assert wanted.keys() == found.state_dict().keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name])
        assert torch.equal(tensor, before[name]) == ("patch_embed.proj.weight" not in name)


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
