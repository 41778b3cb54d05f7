"""Data that share a row: the same loss, gradients and scores as apart, for every attention that claims it; a model that
cannot is refused or left padded; segments that a datum has itself are kept apart in every way of computing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import DataError, Datum, PlanError, Sampling
from finetooth_hooks.protocols import DataPart, Head, LayerFacts, ModelInfo
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.fake_context import TRAIN
from finetooth_torch.backend import TorchBackend, TorchOptions
from finetooth_torch.layout.shared_rows import find_rows
from finetooth_torch.planning.attention import AttentionChoice

pytestmark = pytest.mark.parametrize("kit", ["transformers"], indirect=True)  # what is packed is its own forward

EAGER = AttentionChoice({}, {"full": next(iter(entries_of("finetooth_eager.plugin")))}, ())  # type: ignore[dict-item]
SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

KEEP_APART = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {**WINDOWS, "final_logit_softcapping": None},
    "gemma3_text": WINDOWS,
    "phi3": {},
    "qwen3_moe": EXPERTS,
    "glm4": {},
    "olmo2": {},
    "cohere2": {**WINDOWS, "logit_scale": 1.0},
    "gpt_oss": {**WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Architectures that can, by transformers' model type: windows of 4, norms everywhere, experts, fused projections, and
one whose code does not hand its positions on to the mask."""

CARRY_ON = {
    "mamba": ({"state_size": 4}, "mamba"),
    "falcon_h1": (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
        "mamba",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "conv"),
    "recurrent_gemma": ({}, "recurrent"),
    "qwen3_next": (
        {**EXPERTS, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "linear_attention",
    ),
}  # fmt: skip
"""Architectures that carry a state, and what the reason names."""
RESET = ("mamba", "falcon_h1", "lfm2", "qwen3_next")
"""Of them those whose state begins anew with each sequence (test_torch_state_reset.py)."""


def config_of(kind: str, **changes: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**{**SIZES, **changes})


def engine_of(kit: SimpleNamespace, kind: str, *, packing: Any, **more: Any) -> Any:
    config = config_of(kind, **KEEP_APART[kind])
    options = {"packing": packing, **more.pop("options", {})}
    facts = {"block": None, "head": Head(), "tied": False}
    return kit.engine(config=config, adapter=kit.adapter(full=True), facts=facts, options=options, **more)


def attention_of(kind: str) -> list[str]:
    return ["eager"] if kind in ("gemma2", "gpt_oss") else ["sdpa", "eager"]


@pytest.mark.parametrize(
    ("kind", "attention"), [(kind, attention) for kind in KEEP_APART for attention in attention_of(kind)]
)
def test_packed_is_unpacked(kit: SimpleNamespace, kind: str, attention: str) -> None:
    """Loss, every gradient and every log-probability, in float32."""
    data = kit.data(14, seed=3)
    made = {}
    for packing in (False, True):
        options = {"attention": attention}
        engine = engine_of(kit, kind, packing=packing, options=options, precision="fp32", micro_batch_tokens=220)
        result = engine.forward_backward(data, kit.nll)
        made[packing] = (result, kit.gradients(engine), engine.logprobs(data))
    (apart, gradients, scores), (packed, ours, found) = made[False], made[True]
    assert packed.padded < 0.93 * apart.padded  # rows were shared
    assert packed.loss == pytest.approx(apart.loss, rel=1e-5)
    assert kit.relative(ours, gradients) < 1e-5
    assert ours.keys() == gradients.keys()
    largest = max(float(np.abs(g).max()) for g in gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(ours[name], gradient, atol=1e-5 * largest, rtol=1e-5, err_msg=name)
    for mine, theirs in zip(found, scores, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_mask_of_ones_would_not_do(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the self-check is for: attention that sees the row before is noticed, refused, or left padded."""
    import finetooth_torch.layout.shared_rows as shared_rows

    def leaky(body: Any, packed: Any, masks: str) -> Any:
        ones = torch.ones_like(packed.tokens)
        found = body(input_ids=packed.tokens, position_ids=packed.positions, attention_mask=ones, use_cache=False)
        return found.last_hidden_state

    monkeypatch.setattr(shared_rows, "packed_states", leaky)
    with pytest.raises(PlanError, match=r"backend\.packing=true: a sequence sees the one before it"):
        engine_of(kit, "llama", packing=True)
    engine = engine_of(kit, "llama", packing="auto", micro_batch_tokens=220)
    assert engine._parts.network.rows.filling is None
    assert engine.forward_backward(kit.data(14, seed=3), kit.nll).padded > 200


@pytest.mark.parametrize("kind", CARRY_ON)
def test_layers_that_carry_a_state_are_reset_or_refused(kit: SimpleNamespace, kind: str) -> None:
    """By the config alone, and by trying, if the config did not show it."""
    from transformers import AutoModelForCausalLM

    changes, named = CARRY_ON[kind]
    config = config_of(kind, **changes)
    decided = plan(kit, config.to_dict())["backend.packing"]
    if kind in RESET:
        assert decided.value is True and plan(kit, config.to_dict(), packing=True)["backend.packing"].value is True
    else:
        with pytest.raises(PlanError, match=rf"backend\.packing=true: {named}\w* layers hand a state on"):
            plan(kit, config.to_dict(), packing=True)
        assert decided.value is False and "hand a state on" in decided.reason
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    body = model.base_model
    assert ("hand a state on" in find_rows(body, EAGER).obstacle) != (kind in RESET)
    body.config.to_dict = lambda: {}  # a config that says nothing
    rows = find_rows(body, EAGER)
    if kind in RESET:
        assert rows.filling == "rows"
    else:
        assert rows.filling is None and "sequence" in rows.obstacle


def test_a_model_that_makes_its_mask_without_positions_is_given_one(kit: SimpleNamespace) -> None:
    """OPT's own mask does not know of positions that begin anew; under a mask of ours it computes what it should."""
    from finetooth_torch.layout.shared_rows import _leak
    from transformers import AutoModelForCausalLM

    config = config_of("opt", ffn_dim=40, word_embed_proj_dim=24)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    body = model.base_model.decoder
    assert "sees the one before it" in _leak(body, "own", one_row=False)
    assert find_rows(body, EAGER).masks == "given"


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3_text"])
def test_rounding_is_no_leak(kit: SimpleNamespace, kind: str) -> None:
    assert engine_of(kit, kind, packing=True, precision="bf16")._parts.network.rows.filling == "rows"


def test_trying_leaves_the_config_as_it_was(kit: SimpleNamespace) -> None:
    from transformers import AutoModelForCausalLM

    config = config_of("mistral", sliding_window=100)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    before = dict(vars(model.base_model.config))
    assert find_rows(model.base_model, EAGER).filling == "rows"
    assert dict(vars(model.base_model.config)) == before


def segmented(kit: SimpleNamespace) -> tuple[list[Datum], list[Datum]]:
    """Data of several segments, and each segment as a datum of its own."""
    apart = kit.data(9, seed=5)
    whole = []
    for name, members in (("a", apart[:4]), ("b", apart[4:5]), ("c", apart[5:])):
        joined = [np.concatenate([getattr(d, part) for d in members]) for part in ("tokens", "targets")]
        weights = np.concatenate([d.fields["weights"] for d in members])
        parents = np.arange(sum(len(d) for d in members)) - 1
        parents[np.cumsum([0, *(len(d) for d in members[:-1])])] = -1
        base = Datum.from_tokens([*joined[0], 0], id=name)
        whole.append(Datum(base.input, joined[1], fields={"weights": weights}, parents=parents, id=name))
    return whole, apart


@pytest.mark.parametrize("decoder", ["auto", "transformers"])
@pytest.mark.parametrize("packing", ["auto", False])
def test_segments_of_a_datum_are_data(kit: SimpleNamespace, decoder: str, packing: Any) -> None:
    """In the stream decoder, in shared rows, and with packing off: what the user packed stays apart."""
    if decoder == "auto" and packing is False:
        pytest.skip("the stream decoder always packs")
    whole, apart = segmented(kit)
    engine = kit.engine(options={"decoder": decoder, "packing": packing}, precision="fp32", micro_batch_tokens=200)
    result = engine.forward_backward(whole, kit.nll)
    gradients, scores = kit.gradients(engine), engine.logprobs(whole)
    engine.zero_grad()
    expected = engine.forward_backward(apart, kit.nll)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert kit.relative(gradients, kit.gradients(engine)) < 1e-5
    np.testing.assert_allclose(np.concatenate(scores), np.concatenate(engine.logprobs(apart)), atol=1e-5)
    leaky = [replace(d, parents=None) for d in whole]
    assert abs(float(np.concatenate(engine.logprobs(leaky)).sum() - np.concatenate(scores).sum())) > 1e-3


@pytest.mark.parametrize("decoder", ["auto", "transformers"])
def test_segments_that_cannot_be_computed_are_refused(kit: SimpleNamespace, decoder: str) -> None:
    engine = kit.engine(options={"decoder": decoder})
    plain = kit.data(2, longest=9)
    count = np.arange(len(plain[0]))
    parents = np.where(count % 2, count - 1, -1)
    with pytest.raises(DataError, match="positions of its own, in a step with data that have segments"):
        engine.logprobs([replace(plain[0], parents=parents), replace(plain[1], positions=np.arange(len(plain[1])) * 2)])
    engine.logprobs([replace(plain[0], parents=count - 1), plain[1]])  # one segment is no packing
    counted = np.concatenate([np.arange(2)] * len(plain[0]))[: len(plain[0])]
    engine.logprobs([replace(plain[0], parents=parents, positions=counted), plain[1]])  # what it would get anyway


def test_segments_where_nothing_keeps_them_apart(kit: SimpleNamespace) -> None:
    engine = engine_of(kit, "llama", packing="auto")
    network = engine._parts.network
    network.rows = replace(network.rows, filling=None, obstacle="mamba layers hand a state on")
    whole, _ = segmented(kit)
    with pytest.raises(DataError, match=r"a: it has 4 segments .* mamba layers hand a state on .*isolate_documents"):
        engine.logprobs(whole)


def test_data_with_positions_of_their_own_do_not_share(kit: SimpleNamespace) -> None:
    engine = engine_of(kit, "llama", packing=True, micro_batch_tokens=220)
    data = kit.data(14, seed=3)
    moved = [replace(d, positions=np.arange(len(d))) for d in data]
    packed, plain = engine.forward(data), engine.forward(moved)
    assert packed.padded < plain.padded
    for a, b in zip(packed.outputs, plain.outputs, strict=True):
        np.testing.assert_allclose(a["logprobs"], b["logprobs"], atol=1e-5)


def test_sampling_does_not_know_of_packing(kit: SimpleNamespace) -> None:
    prompts, sampling = [[5, 9, 3], [7, 7, 8, 20, 4]], Sampling(max_tokens=6, temperature=0.0)
    packed, plain = (engine_of(kit, "gemma3_text", packing=packing) for packing in (True, False))
    assert [c[0].tokens for c in packed.generate(prompts, sampling)] == [
        c[0].tokens for c in plain.generate(prompts, sampling)
    ]


def test_whole_outputs_come_back_by_datum(kit: SimpleNamespace) -> None:
    """Hidden states and logits at every position."""
    data = kit.data(8, seed=2)
    made = [
        engine_of(kit, "llama", packing=packing, micro_batch_tokens=220, precision="fp32").forward(
            data, returns=("hidden", "logits", "entropy")
        )
        for packing in (True, False)
    ]
    for ours, theirs in zip(made[0].outputs, made[1].outputs, strict=True):
        for name in ("hidden", "logits", "entropy"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, err_msg=name)


def test_checkpointing_and_dropout_go_with_it(kit: SimpleNamespace) -> None:
    data = kit.data(14, seed=3)
    made = []
    for checkpointing in (False, True):
        engine = engine_of(
            kit, "llama", packing=True, micro_batch_tokens=220, precision="fp32", gradient_checkpointing=checkpointing
        )
        engine.forward_backward(data, kit.nll)
        made.append(kit.gradients(engine))
    assert kit.relative(*made) < 1e-6


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan(
    kit: SimpleNamespace, config: Any, *, lengths: tuple[int, ...] = (), layers: tuple[LayerFacts, ...] = (),
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    context, segmented = more.pop("context", kit.context), more.pop("segmented", False)
    request = kit.plan_request(
        replace(kit.facts(kit.config()), block=None, per_layer=layers),
        hardware=kit.hardware,
        model=ModelInfo("tiny", "test:tiny", "x", config, 10_000, 0),
        train=replace(TRAIN, micro_batch_tokens=4096, batch_size=32),
        data=DataPart(max(lengths, default=50), 30.0, lengths=lengths, segmented=segmented),
    )
    made = TorchBackend(TorchOptions(**more), context).plan(request)
    assert made.padding is not None
    return {"padding": made.padding, **{decision.setting: decision for decision in made.decisions}}


def test_the_plan_says_what_packing_saves(kit: SimpleNamespace) -> None:
    spread = tuple(range(20, 1044, 32))
    made = plan(kit, {}, lengths=spread)
    assert made["backend.packing"].value is True
    packed, padded = made["padding"]([[*spread]]), plan(kit, {}, lengths=spread, packing=False)["padding"]([[*spread]])
    assert 0 <= packed < 0.1 < padded
    found = made["backend.packing"].reason
    assert found.startswith("about ") and " padding instead of about " in found
    assert plan(kit, {}, lengths=(64,) * 33)["backend.packing"].reason == "where it saves padding"
    assert plan(kit, {}, packing=False)["backend.packing"].reason == "the recipe says so"


def test_the_plan_says_what_resetting_states_costs(kit: SimpleNamespace) -> None:
    """Of lengths 32, 96 and 128: 64, 128 and 128 positions are scanned, a quarter more than 256."""
    config = {"layer_types": ["linear_attention", "full_attention"]}
    layers = (LayerFacts("linear", {}, {}, state=64), LayerFacts("attention", {}, {}, 4, 2, 6))
    decided = plan(kit, config, lengths=(32, 96, 128), layers=layers)["backend.packing"]
    assert decided.value is True and "scans up to 25% more positions" in decided.reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"text_config": {"block_types": ["recurrent", "attention"]}}, "recurrent layers"),
    ],
)
def test_what_a_config_rules_out(kit: SimpleNamespace, config: Any, reason: str) -> None:
    assert reason in plan(kit, config)["backend.packing"].reason
    with pytest.raises(PlanError, match=r"method: its sequences hold several documents.*isolate_documents: false"):
        plan(kit, config, segmented=True)


def test_attention_without_a_mask_is_refused(kit: SimpleNamespace) -> None:
    (sdpa,) = entries_of("finetooth_sdpa.plugin")
    blind = replace(sdpa, name="xla_flash", serves=replace(sdpa.serves, segments="none"))
    with pytest.raises(PlanError, match="attention xla_flash takes no mask that keeps sequences apart"):
        plan(kit, {}, packing=True, context=FakeContext(Path(), entries=(blind,)))


def test_padding_is_not_to_be_had_from_the_stream_decoder(kit: SimpleNamespace) -> None:
    facts = kit.facts(kit.config())
    from finetooth_torch.planning.decisions import choose_decoder, stream_obstacle

    obstacle = stream_obstacle(facts, kit.hardware, "auto", False)
    assert choose_decoder(obstacle, kit.hardware, "auto", brought=True).value == "transformers"
    with pytest.raises(PlanError, match=r"backend\.decoder=stream: backend\.packing=false"):
        choose_decoder(obstacle, kit.hardware, "stream", brought=True)


def test_a_row_larger_than_the_budget_is_refused_by_name(kit: SimpleNamespace) -> None:
    data = kit.data(5, longest=20)
    longest = max(data, key=len)
    engine = kit.engine(micro_batch_tokens=len(longest) - 1)
    for call in (lambda: engine.forward_backward(data, kit.nll), lambda: engine.logprobs(data)):
        with pytest.raises(DataError, match=f"^{longest.id}: {len(longest)} positions, more than train.micro_batch"):
            call()
    assert len(kit.engine(micro_batch_tokens=len(longest)).logprobs(data)) == 5
