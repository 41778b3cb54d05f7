"""A scalar head computes, trains and is loaded as transformers' own classifiers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, LossData, LossSpec, PlanError, ScalarHead, TokenChunk, UserError
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult
from finetooth_toolbox.saved_heads import head_of
from finetooth_torchshared.classifiers import as_classifier
from torch import nn

SEQUENCE, TOKEN = ScalarHead(), ScalarHead(bias=True, exported_as="token")


def texts(count: int = 7, seed: int = 0, vocab: int = 61) -> list[Datum]:
    """Pairs of texts that are scored at their last token."""
    random = np.random.default_rng(seed)
    data = []
    for i in range(2 * (count // 2)):
        ids = random.integers(2, vocab, size=int(random.integers(4, 25)))
        mask = np.arange(len(ids)) == len(ids) - 1
        data.append(Datum((TokenChunk(ids),), np.zeros_like(ids), mask=mask, group=f"{i // 2}", id=f"text:{i}"))
    return data


def bradley_terry(outputs: Any, data: LossData, state: Any) -> LossResult:
    scores = outputs["scores"]
    return LossResult({"bt": Contribution(-xp.sum(xp.log_sigmoid(scores[0::2] - scores[1::2])), per="groups")})


BT = LossSpec("test:bt", bradley_terry, frozenset({"scores"}), together="group")


def padded(data: list[Datum], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(datum) for datum in data)
    ids = torch.full((len(data), width), pad)
    seen = torch.zeros((len(data), width), dtype=torch.long)
    for s, datum in enumerate(data):
        ids[s, : len(datum)] = torch.from_numpy(datum.tokens.copy())
        seen[s, : len(datum)] = 1
    return ids, seen


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("config", ["llama", "qwen2", "tied"])
def test_scores_and_gradient_are_those_of_transformers_classifier(
    kit: SimpleNamespace, full: bool, config: str
) -> None:
    settings = kit.config("llama", tie_word_embeddings=True) if config == "tied" else kit.config(config)
    engine = kit.engine(config=settings, adapter=kit.adapter(full=full), head=SEQUENCE)
    data = texts()
    result = engine.forward_backward(data, BT)
    scores = [float(each["scores"]) for each in engine.forward(data, returns=("scores",)).outputs]
    got = kit.gradients(engine)
    engine.zero_grad()
    network = engine._parts.network
    classifier = network.scalar.classifier(network.model)
    ids, seen = padded(data)
    wanted = classifier(input_ids=ids, attention_mask=seen).logits.squeeze(-1)
    loss = -nn.functional.logsigmoid(wanted[0::2] - wanted[1::2]).mean()
    loss.backward()
    assert scores == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-6)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert "score.weight" in got
    assert kit.relative(got, kit.gradients(engine)) < 1e-5


def test_values_of_steps_are_the_log_odds_of_a_token_classifier(kit: SimpleNamespace) -> None:
    engine = kit.engine(head=TOKEN)
    with torch.no_grad():
        engine._parts.network.scalar.module.bias.fill_(0.3)
    data = kit.data()
    found = engine.forward(data, returns=("values",)).outputs
    network = engine._parts.network
    ids, seen = padded(data)
    logits = network.scalar.classifier(network.model)(input_ids=ids, attention_mask=seen).logits
    odds = (logits[..., 1] - logits[..., 0]).detach().numpy()
    for s, (datum, each) in enumerate(zip(data, found, strict=True)):
        wanted = np.where(datum.mask, odds[s, : len(datum)], 0.0)
        np.testing.assert_allclose(each["values"], wanted, rtol=1e-4, atol=1e-5)


def test_budget_never_changes_the_gradient_through_a_head(kit: SimpleNamespace) -> None:
    def centred(outputs: Any, data: LossData, state: Any) -> LossResult:
        scores = outputs["scores"]
        return LossResult({"c": Contribution(xp.sum(xp.square(scores - xp.mean(scores) - 1.0)), per="sequences")})

    data = texts(20)
    for spec in (BT, LossSpec("test:centred", centred, frozenset({"scores"}), together="step")):
        found = []
        for budget in (40, 4096):
            engine = kit.engine(head=SEQUENCE, micro_batch_tokens=budget)
            cut = engine.forward_backward(data, spec)
            found.append((cut.micro_batches, cut.loss, kit.gradients(engine)))
        (many, loss, some), (one, whole, wanted) = found
        assert many > one == 1
        assert loss == pytest.approx(whole, rel=1e-6)
        assert kit.relative(some, wanted) < 1e-5


def test_a_head_trains_in_an_fp32_master(kit: SimpleNamespace) -> None:
    engine = kit.engine(head=SEQUENCE, precision="bf16")
    named = dict(engine._parts.parameters.named())
    assert named["score.weight"].dtype == torch.float32
    assert engine._parts.network.scalar.module.weight.dtype == torch.bfloat16
    exact = kit.engine(head=SEQUENCE)
    for each in (engine, exact):
        each.forward_backward(texts(), BT)
    assert (
        kit.relative(
            {"score.weight": kit.gradients(engine)["score.weight"]},
            {"score.weight": kit.gradients(exact)["score.weight"]},
        )
        < 0.05
    )


def test_a_new_head_comes_from_its_generator_alone(kit: SimpleNamespace) -> None:
    before = torch.random.get_rng_state()
    first, second = (kit.engine(head=SEQUENCE)._parts.network.scalar.module.weight for _ in range(2))
    assert torch.equal(first, second)
    assert 0.01 < float(first.detach().std()) < 0.03
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_head_that_the_model_brings_is_gone_on_with(kit: SimpleNamespace, labels: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        brought = nn.Linear(24, labels, bias=labels == 2)

    engine = kit.engine(
        head=TOKEN if labels == 2 else SEQUENCE, prepare=lambda model: model.add_module("score", brought)
    )
    module = engine._parts.network.scalar.module
    wanted = brought.weight[:1] if labels == 1 else brought.weight[1:] - brought.weight[:1]
    assert torch.allclose(module.weight, wanted)
    if labels == 2:
        assert torch.allclose(module.bias, brought.bias[1:] - brought.bias[:1])


def test_an_engine_without_a_head_says_so(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    assert "head" not in engine.capabilities
    with pytest.raises(PlanError, match="built without one"):
        engine.forward(texts(), returns=("scores",))


def test_a_model_without_a_classifier_is_refused_by_name() -> None:
    from finetooth_modelfiles.classifiers import class_name
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    assert class_name("llama", "sequence") == "LlamaForSequenceClassification"
    with pytest.raises(PlanError, match="no sequence classifier for model type 'mamba'"):
        class_name("mamba", "sequence")
    model = MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=20))
    with pytest.raises(PlanError, match="no sequence classifier for model type 'mamba'"):
        as_classifier(model, "sequence")
    bloom = BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(PlanError, match="built otherwise"):  # it calls its head of tokens by another name
        as_classifier(bloom, "token")


def test_heads_are_known_by_the_config() -> None:
    assert head_of({"architectures": ["LlamaForSequenceClassification"], "id2label": {0: "LABEL_0"}}) == SEQUENCE
    assert head_of({"architectures": ["LlamaForTokenClassification"], "id2label": {0: "a", 1: "b"}}) == TOKEN
    assert head_of({"architectures": ["LlamaForSequenceClassification"], "id2label": {0: "a", 1: "b"}}) is None
    assert head_of({"architectures": ["LlamaForCausalLM"]}) is None
    assert head_of({}) is None


@pytest.mark.slow
def test_state_of_another_head_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine = kit.engine(head=TOKEN)
    engine.save(tmp_path / "state")
    with pytest.raises(UserError, match=r"score\.bias"):
        kit.engine(head=SEQUENCE).load(tmp_path / "state")
