"""Full fine-tuning: everything trains, and transformers loads the export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_full.adapter import FullAdapter
from finetooth_hooks import PlanError
from finetooth_kit.whole_weights import (
    assert_equally_public,
    assert_others_are_refused,
    assert_restored,
    assert_silent,
)
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


@pytest.mark.parametrize("tied", [False, True])
def test_restored_weights_are_those_exported(tmp_path, tied):
    assert_restored(FullAdapter(), tmp_path, tied=tied)


def test_an_artifact_of_another_model_is_refused(tmp_path):
    assert_others_are_refused(FullAdapter(), tmp_path)


def test_all_files_are_as_public_as_one_another(tmp_path):
    assert_equally_public(FullAdapter(), tmp_path)


def test_nothing_is_shown_while_weights_are_saved_and_read(tmp_path, capfd):
    assert_silent(FullAdapter(), tmp_path, capfd)
