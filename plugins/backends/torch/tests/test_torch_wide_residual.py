"""fp16 with transformers' own layers: a residual stream beyond fp16's largest number, against fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks import NotFinite, Sampling
from finetooth_hooks.protocols import Head
from finetooth_kit import FakeContext
from finetooth_torch import compiled_layers
from finetooth_torch.backend import TorchBackend, TorchOptions
from finetooth_torch.decoder import wide_residual

pytestmark = pytest.mark.parametrize("kit", ["auto"], indirect=True)  # each test names its own decoder
LARGEST = 65_504.0
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("down_proj", {}),
    "gemma2": ("post_feedforward_layernorm", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "qwen3": ("down_proj", {"head_dim": 8}),
    "mistral": ("down_proj", {}),
    "phi3": ("down_proj", {}),
    "phi": ("fc2", {}),
    "gpt_neox": ("dense_4h_to_h", {}),
    "gemma4_text": (
        "post_feedforward_layernorm",
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": 61,
        },
    ),
}
"""The module that adds to the stream in a layer, and settings."""
SLOW = ("mistral", "phi3", "qwen3")
EVERY = pytest.mark.parametrize("kind", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in KINDS])


def stream_of(model: Any) -> torch.Tensor:
    """Of each layer, what it gives for a few tokens."""
    seen: list[torch.Tensor] = []
    layers = model.get_submodule("gpt_neox.layers" if hasattr(model, "gpt_neox") else "model.layers")
    hooks = [layer.register_forward_hook(lambda _, __, made: seen.append(made)) for layer in layers]
    with torch.no_grad():
        model(torch.arange(2, 60)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([of[0] if isinstance(of, tuple) else of for of in seen])


def beyond(adds: str) -> Callable[[Any], None]:
    """Changes a model so that one number of its stream is below fp16's largest at first, and beyond it after the first
    layer, as in models with a few very large activations; all weights are fp16 numbers. In Gemma, one addition is."""

    def prepare(model: Any) -> None:
        embedded = model.get_input_embeddings().weight
        gemma = model.config.model_type.startswith("gemma")  # it multiplies embeddings by a root of the width
        plus = float(model.config.model_type == "gemma2")  # and that one's norms by one more than their weight
        with torch.no_grad():
            embedded.mul_(1000.0)
            embedded[:, 3] = 60_000.0 / (model.config.hidden_size**0.5 if gemma else 1.0)
            wide = copy.deepcopy(model).half().float()
            made: list[torch.Tensor] = []
            found = [path for path, _ in model.named_modules() if path.endswith(adds)]
            wide.get_submodule(found[0]).register_forward_hook(lambda _, __, out: made.append(out.flatten(0, -2)))
            stream_of(wide)
            for path in found:
                weight = model.get_submodule(path).weight
                weight.copy_((weight + plus) * 1000.0 - plus)
            largest = made[0][made[0][:, 3].abs().argmax(), 3]
            weight = model.get_submodule(found[0]).weight
            weight[3] = (weight[3] + plus) * ((100.0 if gemma else 40.0) / largest).clamp(-60, 60) - plus
            for parameter in model.parameters():
                parameter.copy_(parameter.half())

    return prepare


def engine_of(kit: SimpleNamespace, kind: str, precision: str, *, large: bool = True, **changes: Any) -> Any:
    adds, own = KINDS[kind]
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **own})
    paths = {"layer_path": "gpt_neox.layers", "body": "gpt_neox"}
    facts = {"block": None, **(paths if kind == "gpt_neox" else {}), **changes.pop("facts", {})}
    if kind == "gemma4_text":
        facts["linear_targets"] = ("q_proj", "per_layer_input_gate", "per_layer_projection")
    if kind.startswith("gemma"):
        facts["head"] = Head(softcap=config.final_logit_softcapping)
    full = changes.pop("full", False)
    targets = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "down_proj", "fc1", "dense", "per_layer_input_gate")
    return kit.engine(
        config=config, facts=facts, adapter=changes.pop("adapter", kit.adapter(full=full, targets=targets)),
        precision=precision, decoder="transformers", prepare=beyond(adds) if large else None, **changes,
    )  # fmt: skip


def passed(kit: SimpleNamespace, engine: Any) -> tuple[Any, Any]:
    data = kit.data()
    loss = engine.forward_backward(data, kit.nll).loss
    return loss, kit.gradients(engine)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@EVERY
def test_a_stream_beyond_fp16_has_the_numbers_of_fp32(kit: SimpleNamespace, kind: str, full: bool) -> None:
    half, exact = (engine_of(kit, kind, precision, full=full) for precision in ("fp16", "fp32"))
    base = half._parts.network.base
    assert {p.dtype for p in base.parameters()} == {torch.float16}
    stream = stream_of(exact._parts.network.base)
    assert float(stream.abs().max()) > 1.05 * LARGEST
    assert stream_of(base).dtype == torch.float32
    scores = [np.concatenate(engine.logprobs(kit.data())) for engine in (half, exact)]
    (loss, gradients), (exact_loss, exact_gradients) = (passed(kit, engine) for engine in (half, exact))
    assert np.abs(scores[0] - scores[1]).max() < 2e-3
    assert loss == pytest.approx(exact_loss, rel=5e-5)
    assert kit.relative(gradients, exact_gradients) < 5e-3


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_stream_in_fp16_overflows_there(
    kit: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """So that the models above show something."""
    monkeypatch.setattr(wide_residual, "widen_residual", lambda *of: None)
    with pytest.raises(NotFinite):
        passed(kit, engine_of(kit, kind, "fp16"))


def test_recomputed_activations_and_pieces_have_the_same_bits(kit: SimpleNamespace) -> None:
    changes = ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "options": {"packing": False}})
    found = [passed(kit, engine_of(kit, "llama", "fp16", full=True, **change)) for change in changes]
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    assert found[2][0] == pytest.approx(found[0][0], rel=1e-4)


def test_a_resumed_engine_continues_bit_for_bit(kit: SimpleNamespace, tmp_path: Path) -> None:
    def make() -> Any:
        return engine_of(kit, "gemma2", "fp16", adapter=kit.adapter(dropout=0.2), max_grad_norm=1.0)

    def train(engine: Any) -> list[float]:
        losses = []
        for step in range(2):
            losses.append(engine.forward_backward(kit.data(4, seed=step), kit.nll).loss)
            assert not engine.step().skipped
        return losses

    engine = make()
    train(engine)
    engine.save(tmp_path / "state")
    resumed = make()
    resumed.load(tmp_path / "state")
    assert train(resumed) == train(engine)
    after = kit.weights(engine)
    assert all(np.array_equal(after[name], value) for name, value in kit.weights(resumed).items())


def test_sampling_takes_the_tokens_of_fp32(kit: SimpleNamespace) -> None:
    greedy = Sampling(max_tokens=8, temperature=0.0, seed=1, stop_ids=())
    half, exact = (engine_of(kit, "llama", p).generate([[5, 6, 7, 8], [9, 10]], greedy) for p in ("fp16", "fp32"))
    assert [one.tokens for (one,) in half] == [one.tokens for (one,) in exact]


@EVERY
def test_models_with_a_small_stream_are_closer_to_fp32(
    kit: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Than with their stream in fp16: scores and gradients."""
    (exact, gradients), scores = passed(kit, engine := engine_of(kit, kind, "fp32", large=False)), engine.logprobs

    def off(engine: Any) -> tuple[float, float]:
        away = np.concatenate(engine.logprobs(kit.data())) - np.concatenate(scores(kit.data()))
        loss, found = passed(kit, engine)
        assert loss == pytest.approx(exact, rel=1e-3)
        return float(np.square(away).sum()), kit.relative(found, gradients)

    wide = off(engine_of(kit, kind, "fp16", large=False))
    monkeypatch.setattr(wide_residual, "widen_residual", lambda *of: None)
    narrow = off(engine_of(kit, kind, "fp16", large=False))
    assert wide[0] < narrow[0] and wide[1] < 1.1 * narrow[1]


@pytest.mark.slow
def test_compiled_layers_take_it(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_layers, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    for kind in ("gemma2", "phi"):  # both kinds of norms
        plain, exact = (passed(kit, engine_of(kit, kind, "fp16", options={"compile": c})) for c in ("off", "regional"))
        assert plain[0] == pytest.approx(exact[0], rel=1e-5)
        assert kit.relative(plain[1], exact[1]) < 5e-3
    torch._dynamo.reset()


def test_a_model_that_reads_the_stream_without_a_norm_is_left_as_it_was(kit: SimpleNamespace) -> None:
    """OLMo 2 normalises what its layers give, and not what they read."""
    config = transformers.AutoConfig.for_model("olmo2", **SIZES)
    first = kit.engine(config=config, facts={"block": None}, precision="fp16", decoder="transformers")
    context = FakeContext(Path(), installed=True)
    engine = TorchBackend(TorchOptions(decoder="transformers"), context).engine(first._request)
    (note,) = context.notes
    assert "train.precision=fp16: olmo2's residual stream is fp16 too" in note and "65,504" in note
    base = engine._parts.network.base
    kinds = {type(module) for module in base.modules() if "Norm" in type(module).__name__}
    assert kinds == {transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm}
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in base.model.layers)
