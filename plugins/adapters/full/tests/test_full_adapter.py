"""Full fine-tuning: everything trains, and transformers loads the export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_full.adapter import FullAdapter
from finetooth_hooks import PlanError
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


@pytest.mark.parametrize("tied", [False, True])
def test_everything_trains_and_is_counted(tiny, tokens, tied):
    made = tiny(tied=tied)
    for parameter in made.model.parameters():
        parameter.requires_grad_(False)
    model = FullAdapter().apply(made.model, made.facts, np.random.default_rng(0))
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    counted = FullAdapter().trained_parameters(made.facts, made.info.parameters)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_export_with_equal_logits(tiny, tokens, tmp_path, tied, dtype):
    made = tiny(tied=tied)
    model = made.model
    for parameter in model.parameters():  # not model.to(): rotary tables stay float32, as in a loaded model
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    FullAdapter().export(model, tmp_path / "artifact", made.info)
    assert [path.name for path in (tmp_path / "artifact").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((tmp_path / "artifact").glob("*.bin"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", dtype="auto").eval()
    assert loaded.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_odd_sampling_defaults_of_the_base_do_not_lose_the_run(tiny, tmp_path):
    made = tiny()
    made.model.save_pretrained(tmp_path / "base")
    # temperature without do_sample: several published models have it
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    FullAdapter().export(model, tmp_path / "artifact", made.info)
    assert (tmp_path / "artifact" / "model.safetensors").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "artifact").generation_config.temperature == 0.6


def test_it_is_no_reference(tiny):
    with pytest.raises(PlanError, match="reference"):
        FullAdapter().disabled(tiny().model)
