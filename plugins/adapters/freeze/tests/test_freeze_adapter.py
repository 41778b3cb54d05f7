"""Freeze: exactly the top trains, and the export is the whole model."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetooth_freeze.adapter import FreezeAdapter, FreezeOptions
from finetooth_hooks import PlanError, RecipeError
from finetooth_hooks.protocols import Block
from finetooth_kit.whole_weights import (
    assert_equally_public,
    assert_others_are_refused,
    assert_restored,
    assert_silent,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


def adapt(made, **options):
    adapter = FreezeAdapter(FreezeOptions(**options))
    return adapter, adapter.apply(made.model, made.facts, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"layers": 1}, r"model\.layers\.3\..*"),
        ({"layers": 2, "norm": True}, r"model\.layers\.[23]\..*|model\.norm\.weight"),
        ({"layers": 3, "head": True}, r"model\.layers\.[123]\..*|lm_head\.weight"),
        ({"layers": 4, "norm": True, "head": True}, r"(?!model\.embed).*"),
    ],
)
def test_exactly_the_top_trains(tiny, options, pattern):
    made = tiny(layers=4)
    adapter, model = adapt(made, **options)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)}
    counted = adapter.trained_parameters(made.facts, made.info.parameters)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("block", [None, Block(eps=1e-6)], ids=["names unknown", "names known"])
@pytest.mark.parametrize(
    ("tied", "options", "refused"),
    [
        (False, {"unfrozen_parameters": ["lm_head", "norm"]}, "add model.embed_tokens.weight"),
        (False, {"unfrozen_parameters": ["embed_tokens"]}, "set adapter.head: true"),
        (True, {"unfrozen_parameters": ["norm"]}, "add model.embed_tokens.weight"),
        (True, {"unfrozen_parameters": ["norm"], "head": True}, ""),
        (True, {"unfrozen_parameters": ["lm_head"]}, ""),
        (True, {"unfrozen_parameters": ["^model.embed_tokens"]}, ""),
        (False, {"unfrozen_parameters": ["embed"], "head": True}, ""),
        (False, {"unfrozen_parameters": ["model.embed_tokens.weight", "lm_head"]}, ""),
    ],
)
def test_new_tokens_train_or_are_refused(tiny, tied, options, refused, block):
    """In the plan where the names of the parameters are known, else once the model is there."""
    made = tiny(tied=tied)
    facts = replace(made.facts, new_tokens=(60,), block=block)
    adapter = FreezeAdapter(FreezeOptions(**options))
    with pytest.raises(RecipeError, match=f"new token would not train.*{refused}") if refused else nullcontext():
        adapter.trained_parameters(facts, made.info.parameters)
        if block is not None and refused:
            pytest.fail("the plan knows the names")
        model = adapter.apply(made.model, facts, np.random.default_rng(0))
        model(torch.tensor([[60, 1, 60]]), labels=torch.tensor([[60, 1, 60]])).loss.backward()
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert end.weight.grad[60].abs().sum() > 0


def test_a_tied_head_trains_the_embedding_and_counts_once(tiny):
    made = tiny(tied=True)
    adapter, model = adapt(made, layers=1, head=True)
    assert model.model.embed_tokens.weight.requires_grad
    counted = adapter.trained_parameters(made.facts, made.info.parameters)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_step_changes_the_top_only_and_the_export_computes_the_same(tiny, tokens, tmp_path):
    made = tiny(layers=3)
    adapter, model = adapt(made, layers=1, norm=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(tokens, labels=tokens).loss.backward()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {n for n in before if n.startswith("model.layers.2.") or n == "model.norm.weight"}
    adapter.export(model, tmp_path / "artifact", made.info)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, atol=1e-6, rtol=0)


def test_more_layers_than_the_model_has_is_refused(tiny):
    made = tiny(layers=2)
    adapter = FreezeAdapter(FreezeOptions(layers=3))
    for refused in (
        lambda: adapter.trained_parameters(made.facts, made.info.parameters),
        lambda: adapter.apply(made.model, made.facts, np.random.default_rng(0)),
    ):
        with pytest.raises(RecipeError, match=r"adapter\.layers: 3 layers .* has only 2") as raised:
            refused()
        assert raised.value.exit_code == 2


def test_no_layer_at_all_is_refused():
    for options in ({}, {"layers": 0}):
        with pytest.raises(ValidationError):
            FreezeOptions(**options)


def test_a_body_without_a_final_norm_is_named(tiny):
    made = tiny()
    made.model.model.norm2 = torch.nn.LayerNorm(4)
    with pytest.raises(RecipeError, match=r"adapter\.norm"):
        adapt(made, layers=1, norm=True)


def test_it_is_no_reference(tiny):
    with pytest.raises(PlanError, match="reference"):
        FreezeAdapter(FreezeOptions(layers=1)).disabled(tiny().model)


@pytest.mark.parametrize("tied", [False, True])
def test_restored_weights_are_those_exported(tmp_path, tied):
    assert_restored(FreezeAdapter(FreezeOptions(layers=1, norm=True)), tmp_path, tied=tied)


def test_an_artifact_of_another_model_is_refused(tmp_path):
    assert_others_are_refused(FreezeAdapter(FreezeOptions(layers=1, norm=True)), tmp_path)


def test_all_files_are_as_public_as_one_another(tmp_path):
    assert_equally_public(FreezeAdapter(FreezeOptions(layers=1)), tmp_path)


def test_nothing_is_shown_while_weights_are_saved_and_read(tmp_path, capfd):
    assert_silent(FreezeAdapter(FreezeOptions(layers=1)), tmp_path, capfd)
