"""An adapter with a scalar head: peft loads it beside its base, and merged it is transformers' classifier."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import UserError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.merge import merged
from finetooth_torchshared.classifiers import as_classifier
from peft import AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

LOADERS = {
    "sequence": (AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification),
    "token": (AutoPeftModelForTokenClassification, AutoModelForTokenClassification),
}
PAD = 3


@pytest.fixture
def trained(tiny: Any, tmp_path: Path) -> Any:
    """Makes (a classifier with adapter and head, its artifact); the base is saved as a language model."""

    def make(kind: str) -> tuple[Any, Path]:
        made = tiny()
        made.model.save_pretrained(tmp_path / "base")
        adapter = LoraAdapter(LoraOptions(rank=4))
        model = adapter.apply(made.model, made.facts, np.random.default_rng(0)).eval()
        head = torch.nn.Linear(32, {"sequence": 1, "token": 2}[kind], bias=kind == "token")
        classifier = as_classifier(model, kind, head, PAD)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in classifier.named_parameters():
                if "lora" in name or "score" in name:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        adapter.export(classifier, tmp_path / "artifact", replace(made.info, reference=str(tmp_path / "base")))
        return classifier, tmp_path / "artifact"

    return make


def scores(model: Any, pad: int = PAD) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 11, 20, 7, 8], [5, 9, 4, pad, pad, pad]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=(ids != pad).long()).logits.float()


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_peft_loads_it_and_scores_identically(trained: Any, kind: str) -> None:
    classifier, artifact = trained(kind)
    config = json.loads((artifact / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"]
    labels = {"sequence": 1, "token": 2}[kind]
    loaded = LOADERS[kind][0].from_pretrained(str(artifact), num_labels=labels, pad_token_id=PAD)
    wanted = scores(classifier)
    torch.testing.assert_close(scores(loaded), wanted, atol=1e-5, rtol=1e-5)
    fresh = AutoModelForSequenceClassification.from_pretrained(
        Path(config["base_model_name_or_path"]), num_labels=labels, pad_token_id=PAD
    )
    assert kind == "token" or (scores(fresh) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_merged_it_is_a_classifier_that_transformers_loads(trained: Any, tiny: Any, tmp_path: Path, kind: str) -> None:
    classifier, artifact = trained(kind)
    wanted = scores(classifier)
    whole = merged(tiny().model, artifact, PAD)
    whole.save_pretrained(tmp_path / "whole")
    loaded = LOADERS[kind][1].from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(scores(loaded), wanted, atol=1e-5, rtol=1e-5)
    assert loaded.config.pad_token_id == PAD
    assert not any("lora" in name for name, _ in loaded.named_parameters())


def test_an_artifact_without_a_head_is_not_restored_into_one(trained: Any, tiny: Any, tmp_path: Path) -> None:
    made = tiny()
    adapter = LoraAdapter(LoraOptions(rank=4))
    model = adapter.apply(made.model, made.facts, np.random.default_rng(0))
    adapter.export(model, tmp_path / "plain", made.info)
    with pytest.raises(UserError, match="no head that fits"):
        adapter.restore(as_classifier(model, "sequence"), tmp_path / "plain")
