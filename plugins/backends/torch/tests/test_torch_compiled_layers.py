"""Compiled layers: the same numbers as uncompiled ones, few compilations, and what is refused.

torch's tracer with uncompiled kernels (`aot_eager`) stands for its compiler where only tracing matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.compute.quantizers import Stored
from finetooth_hooks.protocols import Device, HardwareFacts, Head, ModelInfo
from finetooth_torch import compiled_layers
from finetooth_torch.compiled_layers import compiler_errors
from finetooth_torch.planning import compilation
from finetooth_torch.planning.compilation import choose_compile
from finetooth_torch.planning.decisions import decide
from finetooth_torch.planning.offload import Offload
from finetooth_torch.planning.routers import RouterCoefficients
from torch._dynamo.utils import counters

pytestmark = pytest.mark.parametrize("kit", ["auto"], indirect=True)  # each test names its own decoder
REGIONAL = {"compile": "regional"}
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled_layers, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def family(kind: str) -> dict[str, Any]:
    """Settings of an engine over a tiny model, computed by transformers' own code."""
    from transformers import Gemma2Config, LlamaConfig, Qwen3MoeConfig

    if kind == "llama":
        return {"config": LlamaConfig(**SHAPE), "facts": {"block": None}}
    if kind == "gemma2":  # windows, caps on scores and logits
        config = Gemma2Config(**SHAPE, sliding_window=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0)
        return {"config": config, "facts": {"block": None, "head": Head(softcap=5.0)}}
    config = Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    return {"config": config, "facts": {"block": None}}


def passed(kit: SimpleNamespace, options: dict[str, Any], full: bool, **settings: Any) -> tuple[Any, ...]:
    """Loss, gradients and scores of one step."""
    adapter = kit.adapter(full=full, targets=("q_proj", "v_proj"))
    engine = kit.engine(adapter=adapter, options={"decoder": "transformers", **options}, **settings)
    data = kit.data(6)
    result = engine.forward_backward(data, kit.nll)
    return float(result.loss), kit.gradients(engine), np.concatenate(engine.logprobs(data)), engine


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.usefixtures("tracer")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
def test_compiled_layers_compute_the_same(kit: SimpleNamespace, kind: str, full: bool) -> None:
    """Twice: with and without activation checkpointing. Names of modules and weights stay."""
    precision, rounding = ("fp32", 2e-5) if kind == "qwen3_moe" else ("fp64", 1e-9)
    settings = {**family(kind), "precision": precision}
    loss, gradients, scores, eager = passed(kit, {}, full, **settings)
    for recomputes in (False, True):
        other, others, again, engine = passed(kit, REGIONAL, full, gradient_checkpointing=recomputes, **settings)
        assert other == pytest.approx(loss, rel=rounding)
        assert kit.relative(others, gradients) < rounding
        np.testing.assert_allclose(again, scores, rtol=rounding, atol=rounding)
        assert list(engine.module().state_dict()) == list(eager.module().state_dict())
        assert [name for name, _ in engine.module().named_modules()] == [n for n, _ in eager.module().named_modules()]
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.usefixtures("tracer")
def test_sizes_compile_nothing_new(kit: SimpleNamespace) -> None:
    """After steps of one and of several rows, thirty other sizes use the same code, which no layer has alone."""
    options = {"decoder": "transformers", "packing": False, **REGIONAL}
    engine = kit.engine(options=options, micro_batch_tokens=200, **family("llama"))
    for count in (1, 5):
        engine.forward_backward(kit.data(count), kit.nll)
        engine.logprobs(kit.data(count))
    before = counters["stats"]["unique_graphs"]
    assert 0 < before <= 8  # one row or several, with gradients or without, inputs with a gradient or without
    for seed in range(30):
        data = kit.data(1 + seed % 7, seed=seed, longest=6 + 2 * seed)
        engine.forward_backward(data, kit.nll)
        engine.logprobs(data)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_same_bits(
    kit: SimpleNamespace, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's compiler: a run goes through sizes that the resumed one, which compiles anew, never sees. Its numbers
    are the uncompiled ones up to rounding."""
    settings = {"options": {"decoder": "transformers", **REGIONAL}, "precision": precision, **family("llama")}

    def step(engine: Any, seed: int) -> float:
        result = engine.forward_backward(kit.data(1 + 3 * seed, seed=seed, longest=10 + 5 * seed), kit.nll)
        engine.step()
        return float(result.loss)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    engine = kit.engine(**settings)
    eager = kit.engine(**{**settings, "options": {"decoder": "transformers"}})
    for seed in (2, 0):
        assert step(engine, seed) == pytest.approx(step(eager, seed), rel=1e-5 if precision == "fp32" else 3e-2)
    engine.save(tmp_path / "state")
    expected = step(engine, 1), kit.weights(engine)
    torch._dynamo.reset()
    resumed = kit.engine(**settings)
    resumed.load(tmp_path / "state")
    assert step(resumed, 1) == expected[0]
    for name, weights in kit.weights(resumed).items():
        np.testing.assert_array_equal(weights, expected[1][name])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_off_and_says_how_to_turn_it_on(kit: SimpleNamespace, device: str) -> None:
    decided = choose_compile("auto", device, stream=False)
    assert decided is not None
    assert (decided.setting, decided.value) == ("backend.compile", "off")
    assert "set backend.compile: regional" in decided.reason
    assert choose_compile("auto", device, stream=True) is None
    request = kit.plan_request(replace(kit.facts(kit.config()), block=None))
    for wanted, value in (("auto", "off"), ("off", "off"), ("regional", "regional")):
        plan = decide(request, "auto", context=kit.context, compiling=wanted)
        assert {one.setting: one.value for one in plan.decisions}["backend.compile"] == value


def refused(kit: SimpleNamespace, request: Any = None, **settings: Any) -> str:
    request = request or kit.plan_request(replace(kit.facts(kit.config()), block=None))
    given = {"attention": "auto", "context": kit.context, "compiling": "regional", **settings}
    with pytest.raises(PlanError, match=r"^backend\.compile=regional: ") as caught:
        decide(request, given.pop("attention"), **given)
    assert "backend.compile" in caught.value.action
    return str(caught.value.problem)


def test_what_excludes_it_is_refused(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "stream decoder" in refused(kit, kit.plan_request(kit.facts(kit.config())))
    for name, offload in {
        "backend.activations": Offload(activations="disk"), "backend.layers": Offload(layers="disk"),
    }.items():  # fmt: skip
        assert name in refused(kit, offload=offload)
    assert "backend.share_base" in refused(kit, share_base=True)
    assert "backend.detect_anomaly" in refused(kit, anomalies=True)
    assert "router_aux_loss_coef" in refused(kit, routers=RouterCoefficients(0.1, 0.0))
    wide = kit.plan_request(replace(kit.facts(kit.config(hidden_size=64)), block=None))
    assert "attention native" in refused(kit, wide, attention="native")
    stored = kit.plan_request(
        replace(kit.facts(kit.config()), block=None),
        model=ModelInfo("tiny", "test:tiny", "llama", {}, 10_000, 0, stored=Stored("nf4", 0.6)),
    )
    assert "fewer bits" in refused(kit, stored)
    gpu = HardwareFacts("test:gpu", (Device("cuda", "a GPU", 8 * 2**30),), ("bf16", "fp32"))
    request = kit.plan_request(replace(kit.facts(kit.config()), block=None), hardware=gpu)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert "Triton" in refused(kit, request)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in refused(kit)


def test_layers_that_cannot_be_compiled_are_refused_when_built(kit: SimpleNamespace) -> None:
    options = {"decoder": "transformers", **REGIONAL}
    with pytest.raises(PlanError, match=r"^backend\.compile=regional: .*dropout drops at random") as caught:
        kit.engine(adapter=kit.adapter(dropout=0.1), options=options, **family("llama"))
    assert "adapter.dropout" in caught.value.action

    def hook(model: Any) -> None:
        model.model.layers[1].mlp.register_forward_hook(lambda *_: None)

    with pytest.raises(PlanError, match=r"^backend\.compile=regional: mlp in a layer has a hook"):
        kit.engine(prepare=hook, options=options, **family("llama"))


@pytest.mark.usefixtures("tracer")
def test_code_that_torch_cannot_trace_is_refused_at_the_first_step(kit: SimpleNamespace) -> None:
    def opaque(model: Any) -> None:
        mlp = model.model.layers[0].mlp
        plain = mlp.act_fn.forward
        mlp.act_fn.forward = lambda x: plain(x) if float(x.sum().tolist()) else print("zero")

    engine = kit.engine(prepare=opaque, options={"decoder": "transformers", **REGIONAL}, **family("llama"))
    with pytest.raises(
        PlanError, match=r"^backend\.compile=regional: torch cannot compile LlamaDecoderLayer: ."
    ) as said:
        engine.forward_backward(kit.data(2), kit.nll)
    assert said.value.action == "set backend.compile: off" and "\n" not in said.value.problem


@pytest.mark.usefixtures("kit")
def test_what_a_killed_compiler_leaves_is_told_in_a_line() -> None:
    """Backward is compiled when it first runs: a file that is cut off is found there."""

    def cut_off(graph: Any, inputs: Any) -> Any:
        raise ImportError("main.so: file too short")

    torch._dynamo.reset()
    layer = torch.compile(torch.nn.Linear(2, 2), backend=cut_off)
    with (
        pytest.raises(
            PlanError, match=r"^backend\.compile=regional: torch cannot compile the backward pass: ."
        ) as said,
        compiler_errors("the backward pass"),
    ):
        layer(torch.ones(1, 2))
    assert "killed while it compiled, remove /" in said.value.action
    with pytest.raises(RuntimeError, match="another"), compiler_errors("the backward pass"):
        raise RuntimeError("another")
