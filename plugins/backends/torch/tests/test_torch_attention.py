"""Attention that entries bring: the same training as the model's own, picked by kind of layer, told the lengths that
the layout knows, and refused with a reason where it cannot serve."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Attention, AttentionServes, NoOptions, PlanError, Sampling
from finetooth_hooks.protocols import AttentionNeeds
from finetooth_kit import FakeContext, entries_of
from finetooth_toolbox.attention_choice import missing_packages
from finetooth_torch.attention.handing import handed, handing, newest
from finetooth_torch.layout.shared_rows import check_causal
from finetooth_torch.planning.attention import choose_attention

pytestmark = pytest.mark.parametrize("kit", ["transformers"], indirect=True)  # its own code is what calls attention

SERVES = AttentionServes(devices=frozenset({"cpu"}), window=True, softcap=True, sinks=True, fused=False)
OWN = Attention(name="own", build="strange_attention:build", summary="sequence by sequence", serves=SERVES)
SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {**WINDOWS, "final_logit_softcapping": None, "attn_logit_softcapping": 2.0},
    "gemma3_text": WINDOWS,
    "gpt_oss": {**WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
}
CALLS: list[tuple[Any, int | None]] = []


def build(options: NoOptions, context: Any) -> Any:
    return attend


def attend(
    query: Any, key: Any, value: Any, *, scale: float, lengths: Any, causal: bool, window: int | None,
    softcap: float | None, sinks: Any,
) -> Any:  # fmt: skip
    """Sequence by sequence, as the contract says it."""
    CALLS.append((lengths, window))
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    offset = key.shape[2] - query.shape[2]
    rows = []
    for row, segments in enumerate(lengths):
        parts, stop = [], 0
        for length in segments:
            start, stop = stop, stop + length
            first = max(start, offset)
            if first >= stop:
                continue
            q, k = query[row, :, first - offset : stop - offset], key[row, :, start:stop]
            i, j = torch.arange(first, stop)[:, None], torch.arange(start, stop)
            scores = q @ k.transpose(1, 2) * scale
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            seen = j <= i if window is None else (j <= i) & (j > i - window)
            scores = scores.masked_fill(~seen, -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:2], 1)], -1)
            parts.append(scores.softmax(-1)[..., :length] @ value[row, :, start:stop])
        rows.append(torch.cat(parts, 1))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setitem(sys.modules, "strange_attention", SimpleNamespace(build=build))


def engine_of(
    kit: SimpleNamespace, kind: str, attention: Any, *, entries: tuple[Attention, ...] = (OWN,), **more: Any
) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **SIZES, **MODELS[kind])
    facts = {
        "block": None,
        "attention": AttentionNeeds(softcap=MODELS[kind].get("attn_logit_softcapping"), sinks=kind == "gpt_oss"),
    }
    named = {"q_proj", "k_proj", "v_proj", "o_proj"}
    facts |= {"attention_targets": tuple(named), "linear_targets": tuple(named)}
    torch.manual_seed(3)
    return kit.engine(
        config=config, facts=facts, entries=entries, options={"attention": attention}, precision="fp32",
        model={"config": config.to_dict()}, micro_batch_tokens=90, **more,
    )  # fmt: skip


def computed(datum: Any) -> int:
    """Positions up to the last that counts."""
    return int(np.flatnonzero(datum.mask)[-1]) + 1


@pytest.mark.parametrize("kind", MODELS)
def test_it_trains_as_the_models_own(kit: SimpleNamespace, kind: str) -> None:
    """Rows are packed: losses and gradients, with checkpointing too; lengths are those of the data."""
    data = kit.data(9, longest=24)
    eager = engine_of(kit, kind, "eager")
    wanted = eager.forward_backward(data, kit.nll)
    for checkpointing in (False, True):
        CALLS.clear()
        own = engine_of(kit, kind, "own", gradient_checkpointing=checkpointing)
        assert own._parts.network.rows.filling == "stream"
        CALLS.clear()
        found = own.forward_backward(data, kit.nll)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert kit.relative(kit.gradients(own), kit.gradients(eager)) < 2e-5
        lengths = [n for of, _ in CALLS for row in of for n in row]
        assert set(lengths) == {computed(datum) for datum in data}
        windows = {window for _, window in CALLS}
        assert windows == {"llama": {None}, "mistral": {4}}.get(kind, {4, None})


@pytest.mark.parametrize("kind", MODELS)
def test_it_samples_as_the_models_own(kit: SimpleNamespace, kind: str) -> None:
    """Prompts of several lengths, padded on the left, over more tokens than a window."""
    prompts = [(2, 3, 4, 5, 6, 7, 8), (9, 10), (11, 12, 13, 14)]
    sampling = Sampling(max_tokens=9, temperature=0.0, n=2)
    own, eager = (engine_of(kit, kind, name).generate(prompts, sampling) for name in ("own", "eager"))
    for mine, theirs in zip(own, eager, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.tokens == b.tokens
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


def test_kinds_of_layers_have_their_own(kit: SimpleNamespace) -> None:
    data = kit.data(9, longest=24)
    both = {"full": "sdpa", "sliding": "own"}
    eager, mixed = engine_of(kit, "gemma3_text", "eager"), engine_of(kit, "gemma3_text", both)
    CALLS.clear()
    wanted, found = (engine.forward_backward(data, kit.nll) for engine in (eager, mixed))
    assert CALLS and {window for _, window in CALLS} == {4}
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert kit.relative(kit.gradients(mixed), kit.gradients(eager)) < 2e-5
    named = engine_of(kit, "gemma3_text", {"full": "eager", "sliding": "sdpa"})
    assert named.forward_backward(data, kit.nll).loss == pytest.approx(wanted.loss, rel=1e-5)
    assert kit.relative(kit.gradients(named), kit.gradients(eager)) < 2e-5


def test_the_plan_gives_a_reason_for_each(kit: SimpleNamespace) -> None:
    facts, context = kit.facts(kit.config()), FakeContext(Path(), entries=(OWN,), installed=True)

    def chosen(asked: Any, config: Any = WINDOWS, precision: str = "fp32", **changes: Any) -> Any:
        made = choose_attention(context, asked, replace(facts, **changes), config, kit.hardware, precision)
        return {d.setting.removeprefix("backend.attention"): (d.value, d.reason) for d in made.decisions}

    label = "the first choice on 2 CPU cores"
    assert chosen("auto") == {"": ("finetooth-sdpa:sdpa", label)}
    assert chosen("own") == {"": ("under-test:own", "the recipe says so")}
    assert chosen({"sliding": "own"}) == {
        ".full": ("finetooth-sdpa:sdpa", label),
        ".sliding": ("under-test:own", "the recipe says so"),
    }
    for asked, words, config in (
        ({"sliding": "own"}, r"attention\.sliding: the model has no such layers, only full ones", {}),
        ({"wide": "own"}, "'wide' is not a kind of layer", WINDOWS),
        ({"full": "varlen"}, r"attention\.full='varlen': it is for cuda, not for 2 CPU cores", WINDOWS),
        ("flex_attention", "flex: it is for cuda and xpu, not for 2 CPU cores", {}),
    ):
        with pytest.raises(PlanError, match=words):
            chosen(asked, config)


@pytest.mark.parametrize(
    ("serves", "config", "changes", "words"),
    [
        ({"largest_head": 4}, {}, {}, "heads have 6 elements, and it takes 4"),
        ({"head_multiple": 8}, {}, {}, "heads have 6 elements, and it takes multiples of 8"),
        ({"window": False}, WINDOWS, {}, "layers see 4 positions, and it has no window"),
        ({"softcap": False}, {}, {"attention": AttentionNeeds(softcap=30.0)}, "the model caps its scores"),
        (
            {"sinks": False},
            {},
            {"attention": AttentionNeeds(sinks=True)},
            "the model's heads have sinks, and it has none",
        ),
        ({"grouped": False}, {}, {}, "heads share keys and values"),
        ({"precisions": frozenset({"fp16"})}, {}, {}, "it computes fp16, not fp32"),
        ({"backward": False}, {}, {}, "it has no gradients"),
        ({}, {"attention_dropout": 0.1}, {}, "the model drops weights of attention"),
        ({}, {"attn_pdrop": 0.1}, {}, "the model drops weights of attention"),
        ({}, {"attention_probs_dropout_prob": 0.1}, {}, "the model drops weights of attention"),
        ({}, {"attention_chunk_size": 8}, {}, "layers see chunks of positions"),
        ({"architectures": ("sm_9*",)}, {}, {}, "it is for sm_9., and 2 CPU cores is avx2"),
        ({"packages": ("acme-flash",)}, {}, {}, "package acme-flash is not installed"),
        ({"packages": ("torch>=99",)}, {}, {}, "it needs torch 99, and "),
    ],
)
def test_what_it_does_not_serve_is_refused(
    kit: SimpleNamespace, serves: Any, config: Any, changes: Any, words: str
) -> None:
    entry = replace(OWN, serves=replace(SERVES, **serves))
    context = FakeContext(Path(), entries=(entry, *entries_of("finetooth_eager.plugin")))
    facts = replace(kit.facts(kit.config()), **changes)
    hardware = replace(kit.hardware, devices=(replace(kit.hardware.devices[0], architecture="avx2"),))
    with pytest.raises(PlanError, match=rf"backend\.attention='own': {words}") as caught:
        choose_attention(context, "own", facts, config, hardware, "fp32")
    assert "set backend.attention to auto or eager" in str(caught.value)


def test_an_alias_is_the_best_that_serves(kit: SimpleNamespace) -> None:
    slow, fast = (replace(OWN, name=name, aliases=("ours",), rank=rank) for name, rank in (("slow", 1), ("fast", 2)))
    facts = kit.facts(kit.config())
    made = choose_attention(FakeContext(Path(), entries=(slow, fast)), "ours", facts, {}, kit.hardware, "fp32")
    assert made.names == "fast"
    capped = replace(fast, serves=replace(SERVES, largest_head=2))
    made = choose_attention(FakeContext(Path(), entries=(slow, capped)), "ours", facts, {}, kit.hardware, "fp32")
    assert made.names == "slow"


def test_a_function_that_computes_something_else_is_found_out(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any, **named: Any) -> Any:
        return attend(*given, **{**named, "window": None})

    def build_wrong(options: NoOptions, context: Any) -> Any:
        return wrong

    monkeypatch.setitem(sys.modules, "strange_attention", SimpleNamespace(build=build_wrong))
    with pytest.raises(PlanError, match="with own the model computes other states than with its own attention"):
        engine_of(kit, "gemma3_text", "own")


def test_one_that_fails_at_its_trial_is_replaced_or_named(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("CUDA error: no kernel image\nmore words")

    def build_broken(options: NoOptions, context: Any) -> Any:
        return broken

    monkeypatch.setitem(sys.modules, "strange_attention", SimpleNamespace(build=build_broken))
    with pytest.raises(PlanError, match=r"^backend\.attention=own: it fails: CUDA error: no kernel image \(set back"):
        engine_of(kit, "gemma3_text", "own")
    engine = engine_of(kit, "gemma3_text", "auto", entries=(replace(OWN, rank=1000),))
    assert engine._parts.network.config._attn_implementation == "sdpa"


def test_flash_is_told_where_segments_begin(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name of a flash attention stands one that keeps apart only what it is told."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    told: list[Any] = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **more: Any) -> Any:
        keys = query.shape[2]
        begins = more.get("cu_seq_lens_q")
        lengths = (keys,) if begins is None else tuple(begins.diff().tolist())
        if begins is not None:
            told.append((lengths, more["max_length_q"], more["max_length_k"]))
        out = attend(
            query, key, value, scale=scaling, lengths=(lengths,) * query.shape[0], causal=True, window=None,
            softcap=None, sinks=None,
        )  # fmt: skip
        return out.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "strange_varlen", flash)
    none = lambda **asked: None  # noqa: E731
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "strange_varlen", none)
    entry = replace(OWN, name="told", transformers="strange_varlen", serves=replace(SERVES, softcap=False))
    data = kit.data(9, longest=24)
    engines = [
        kit.engine(entries=(entry,), options={"attention": name}, facts={"block": None}, micro_batch_tokens=90)
        for name in ("told", "eager")
    ]
    assert engines[0]._parts.network.rows.masks == "told" and engines[0]._parts.network.rows.filling == "stream"
    told.clear()
    found, wanted = (engine.forward_backward(data, kit.nll) for engine in engines)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert kit.relative(*(kit.gradients(engine) for engine in engines)) < 2e-5
    assert sorted(n for of, _, _ in told[::2] for n in of) == sorted(computed(datum) for datum in data)
    assert all(longest == max(of) for of, longest, _ in told)


def test_a_kind_of_layers_that_takes_lengths_gets_them_beside_one_that_takes_masks(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full layers by an entry that transformers has too, under a name that takes no lengths from us there; several
    rows, each of several sequences."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    none = lambda **asked: None  # noqa: E731
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "strange_varlen", none)
    told = replace(OWN, name="told", transformers="strange_varlen")
    data = [*kit.data(2, longest=40), *kit.data(12, longest=20, seed=4)]
    eager = engine_of(kit, "gemma3_text", "eager")
    mixed = engine_of(kit, "gemma3_text", {"full": "told", "sliding": "sdpa"}, entries=(told,))
    assert mixed._parts.network.rows.filling == "rows"
    CALLS.clear()
    found, wanted = (engine.forward_backward(data, kit.nll) for engine in (mixed, eager))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert kit.relative(kit.gradients(mixed), kit.gradients(eager)) < 2e-5
    assert {window for _, window in CALLS} == {None}
    rows = [row for of, _ in CALLS for row in of]
    assert max(map(len, rows)) > 2 and any(len(of) > 1 for of, _ in CALLS)
    assert {n for row in rows for n in row} >= {computed(datum) for datum in data}


def test_lengths_are_handed_and_cut(kit: SimpleNamespace) -> None:
    del kit
    assert handed() is None
    with handing(((3, 4), (7,))):
        assert handed() == ((3, 4), (7,))
    assert handed() is None
    assert newest(((3, 4), (7,)), 5) == ((1, 4), (5,))
    assert newest(((3, 4), (7,)), 4) == ((4,), (4,))
    assert missing_packages(("torch>=2.0", "numpy")) == ""
    with pytest.raises(ValueError, match="write NAME or NAME>=VERSION"):
        missing_packages(("torch<3",))


# --- the compiled attention of CPUs -----------------------------------------------------------------------------------

NATIVE = {"hidden_size": 64, "head_dim": 16}
"""Sizes of models that it serves."""


@pytest.fixture
def compiled() -> None:
    from finetooth_native.build import available

    if not available().available:
        pytest.skip(available().reason)


def native_engine(kit: SimpleNamespace, attention: str, **more: Any) -> Any:
    """An engine over a model whose heads have 16 elements."""
    torch.manual_seed(3)
    config = kit.config(**NATIVE)
    return kit.engine(config=config, options={"attention": attention}, model={"config": config.to_dict()}, **more)


def implementation(engine: Any) -> str:
    return str(engine._parts.network.base.config._attn_implementation)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_one_trains_and_samples_as_the_models_own(
    kit: SimpleNamespace, compiled: None, precision: str
) -> None:
    """Rows are packed without a mask; prompts of several lengths, padded on the left, are continued over a cache."""
    data = kit.data(9, longest=24)
    own, eager = (native_engine(kit, name, precision=precision) for name in ("native", "eager"))
    assert implementation(own).startswith("finetooth_") and own._parts.network.rows.filling == "stream"
    found, wanted = (engine.forward_backward(data, kit.nll).loss for engine in (own, eager))
    exact = precision == "fp32"
    assert found == pytest.approx(wanted, rel=1e-5 if exact else 5e-3)
    assert kit.relative(kit.gradients(own), kit.gradients(eager)) < (2e-5 if exact else 5e-2)
    if exact:
        prompts = [(2, 3, 4, 5, 6, 7, 8), (9, 10), (11, 12, 13, 14)]
        mine, theirs = (one.generate(prompts, Sampling(max_tokens=9, temperature=0.0, n=2)) for one in (own, eager))
        for a, b in zip((c for row in mine for c in row), (c for row in theirs for c in row), strict=True):
            assert a.tokens == b.tokens
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


def test_the_plan_says_when_the_compiled_one_serves(
    kit: SimpleNamespace, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = kit.facts(kit.config(**NATIVE))

    def chosen(asked: Any = "native", config: Any = {}, precision: str = "fp32", **changes: Any) -> tuple[str, str]:  # noqa: B006
        made = choose_attention(kit.context, asked, replace(facts, **changes), config, kit.hardware, precision)
        return made.decisions[0].value, made.decisions[0].reason

    assert chosen() == ("finetooth-native:native", "the recipe says so")
    assert chosen({"full": "native"}, WINDOWS) == ("finetooth-native:native", "the recipe says so")
    for changes, reason in (
        ({"precision": "fp16"}, "it computes bf16 and fp32, not fp16"),
        ({"head_dim": 24}, "heads have 24 elements, and it takes multiples of 16"),
        ({"config": {"attention_dropout": 0.1}}, "the model drops weights of attention, which it cannot key by datum"),
    ):
        with pytest.raises(PlanError, match=rf"backend\.attention='native': {reason}"):
            chosen(**changes)
    from finetooth_native import build as native

    monkeypatch.setattr(native, "_outcome", native._Outcome(None, "no compiler"))
    with pytest.raises(PlanError, match=r"backend\.attention='native': no compiler \(set backend\.attention to auto"):
        chosen()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_takes_the_one_of_torch_before_the_compiled_one(
    kit: SimpleNamespace, compiled: None, precision: str
) -> None:
    """For layers that both serve: which of them computes decides the last digits of every run of the model's own
    code."""
    facts = kit.facts(kit.config(**NATIVE))
    made = choose_attention(kit.context, "auto", facts, {}, kit.hardware, precision)
    assert made.picks == {"full": "finetooth-sdpa:sdpa"} and made.implementation == "sdpa"
    assert made.decisions[0].reason == "the first choice on 2 CPU cores"
    assert implementation(native_engine(kit, "auto", precision=precision)) == "sdpa"


FIRST = replace(OWN, rank=200)
"""A function that `auto` takes before the implementations of transformers."""


def test_a_model_that_asks_for_more_than_its_config_shows_falls_back_with_a_word(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `auto`; who names it gets an error."""
    assert implementation(native_engine(kit, "auto", entries=(FIRST,))).startswith("finetooth_")

    def build_wrong(options: NoOptions, context: Any) -> Any:
        return lambda query, *rest, **more: attend(query * 2, *rest, **more)

    monkeypatch.setitem(sys.modules, "strange_attention", SimpleNamespace(build=build_wrong))
    assert implementation(native_engine(kit, "auto", entries=(FIRST,))) == "sdpa"
    with pytest.raises(PlanError, match="with own the model computes other states than with its own attention"):
        native_engine(kit, "own", entries=(FIRST,))


def test_a_model_whose_code_takes_no_implementation_computes_attention_itself(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As VaultGemma's: `auto` takes the model's own code; who names another one gets an error."""
    from transformers import LlamaForCausalLM, LlamaModel

    for kind in (LlamaForCausalLM, LlamaModel):
        monkeypatch.setattr(kind, "_supports_sdpa", False)
    config = kit.config()
    config._attn_implementation = "eager"
    assert implementation(kit.engine(config=config, decoder="transformers")) == "eager"
    with pytest.raises(PlanError, match="LlamaForCausalLM does not compute attention with sdpa"):
        kit.engine(config=config, decoder="transformers", options={"attention": "sdpa"})


def test_a_model_that_sees_later_positions_is_refused(kit: SimpleNamespace) -> None:
    """BERT in the class of causal models sees the whole row, unless its config says that it decodes."""
    from transformers import BertConfig, BertModel

    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for decodes in (False, True):
        torch.manual_seed(3)
        body: Any = BertModel(BertConfig(vocab_size=99, is_decoder=decodes, **sizes), add_pooling_layer=False)
        body.eval()
        if decodes:
            check_causal(body)
            continue
        with pytest.raises(PlanError, match=r"model: BertModel is not causal: .* set is_decoder: true"):
            check_causal(body)


def test_the_stream_decoder_is_compared_with_an_implementation_of_transformers(kit: SimpleNamespace) -> None:
    engine = native_engine(kit, "auto", decoder="stream", entries=(FIRST,))
    assert implementation(engine) == "sdpa"
