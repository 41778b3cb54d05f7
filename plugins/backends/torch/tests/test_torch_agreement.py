"""A decoder that computes something else than the model is refused when the engine is built, in bf16 as in fp32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import finetooth_native.linear_groups as groups_module
import finetooth_native.stream_decoder as decoder_module
import finetooth_torch.decoder.agreement as agreement
import pytest
import torch
from finetooth_granite.family import Granite
from finetooth_hooks import PlanError, Sampling
from finetooth_hooks.protocols import Block, Head, LowRank, PickedKernel
from finetooth_kernels.operations import OPERATIONS
from finetooth_mistral.family import Mistral
from finetooth_torch.compute import STREAM, Compute
from finetooth_torch.decoder.agreement import ALLOWED, compare_decoder, compare_head
from finetooth_torch.decoder.trial_layers import one_of_each_kind
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, MistralConfig

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
SCALES = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}
REFUSED = r"backend\.decoder: .*set backend\.decoder: transformers"


@pytest.fixture(autouse=True)
def stream_only(kit: SimpleNamespace) -> None:
    if kit.decoder == "transformers":
        pytest.skip("there is nothing to compare")


@pytest.fixture(params=["bf16", "fp32"])
def build(kit: SimpleNamespace, request: pytest.FixtureRequest) -> Callable[..., Any]:
    def build(config: Any = None, **changes: Any) -> Any:
        return kit.engine(config=config, precision=request.param, **changes)

    return build


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **more}


ROPES = {
    "default": rope("default"),
    "linear": rope("linear", factor=4.0),
    "llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=64),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_is_the_same_is_taken(kit: SimpleNamespace, build: Callable[..., Any], kind: str, name: str) -> None:
    engine = build(kit.config(kind, rope_parameters=ROPES[name], max_position_embeddings=4096))
    network = engine._parts.network
    found = compare_decoder(network.base.model, network.facts, kit.adapter().low_rank, network.compute)
    assert found.share < ALLOWED / 10  # far from refusing by rounding
    assert compare_head(network.base, network.facts).share < ALLOWED / 10


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("full", [False, True])
def test_the_model_is_left_as_it_was(kit: SimpleNamespace, precision: str, full: bool) -> None:
    engine = kit.engine(precision=precision, adapter=kit.adapter(full=full), decoder="stream")
    network = engine._parts.network
    tensors = [*network.base.parameters(), *network.base.buffers()]
    before = [tensor.clone() for tensor in tensors]
    settings, modules = repr(network.base.config), list(network.base.modules())
    random = torch.get_rng_state()
    agreement.check_head(network.base, network.model, network.facts)
    agreement.check_decoder(network.base.model, network.model, network.facts, kit.adapter().low_rank, network.compute)
    assert [id(t) for t in (*network.base.parameters(), *network.base.buffers())] == [id(t) for t in tensors]
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert repr(network.base.config) == settings and list(network.base.modules()) == modules
    assert torch.equal(torch.get_rng_state(), random)


# --- sabotage: the facts ----------------------------------------------------------------------------------------------


def test_another_eps_is_refused(kit: SimpleNamespace, build: Callable[..., Any]) -> None:
    for kind in ("llama", "qwen3"):
        config = kit.config(kind, rms_norm_eps=1e-5)
        block = replace(kit.facts(config).block, eps=1e-6)
        with pytest.raises(PlanError, match=REFUSED):
            build(config, facts={"block": block})


@pytest.mark.parametrize(
    "path", ["layers.1.input_layernorm", "layers.0.post_attention_layernorm", "layers.1.self_attn.k_norm", "norm"]
)
def test_another_eps_of_one_norm_of_one_layer_is_refused(
    kit: SimpleNamespace, build: Callable[..., Any], path: str
) -> None:
    def prepare(model: Any) -> None:
        model.model.get_submodule(path).variance_epsilon = 1e-5

    with pytest.raises(PlanError, match="the final norm" if path == "norm" else f"layer {path[7]} of the stream"):
        build(kit.config("qwen3", rms_norm_eps=1e-6), prepare=prepare)


def test_missing_head_norms_and_another_activation_are_refused(kit: SimpleNamespace, build: Callable[..., Any]) -> None:
    config = kit.config("qwen3")
    for changes in ({"query_norm": "", "key_norm": ""}, {"activation": "gelu"}, {"query": "self_attn.o_proj"}):
        with pytest.raises(PlanError, match=REFUSED):
            build(config, facts={"block": replace(kit.facts(config).block, **changes)})
    config = kit.config(hidden_act="gelu_pytorch_tanh")  # differs from gelu by 5e-4 at most
    with pytest.raises(PlanError, match=REFUSED):
        build(config, facts={"block": replace(kit.facts(config).block, activation="gelu")})


def test_a_block_with_modules_that_are_not_there_is_refused(kit: SimpleNamespace) -> None:
    with pytest.raises(PlanError, match=r"cannot be compared with the model: AttributeError.*q_norm.*transformers"):
        kit.engine(facts={"block": Block(eps=1e-6, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")})


@pytest.mark.parametrize("full", [False, True])
def test_a_model_with_scales_trains_and_samples_as_its_own_code(kit: SimpleNamespace, full: bool) -> None:
    """Granite's embeddings, residuals and scores: losses, gradients and greedy answers of both ways."""
    config = GraniteConfig(**SIZES, **SCALES, logits_scaling=4.0)
    known = {"block": Granite().facts(config.to_dict()).block, "head": Head(scale=0.25)}
    engines = [
        kit.engine(config=config, facts=known, decoder=decoder, adapter=kit.adapter(full=full))
        for decoder in ("stream", "transformers")
    ]
    first, second = (engine.forward_backward(kit.data(), kit.nll).loss for engine in engines)
    assert first == pytest.approx(second, rel=1e-5)
    assert kit.relative(*map(kit.gradients, engines)) < 1e-4
    answers = [engine.generate([[5, 6, 7, 8]], Sampling(max_tokens=12, temperature=0.0)) for engine in engines]
    assert answers[0][0][0].tokens == answers[1][0][0].tokens


# --- sabotage: the model does more ------------------------------------------------------------------------------------


def test_a_window_that_is_ignored_is_refused_however_long_it_is(
    kit: SimpleNamespace, build: Callable[..., Any]
) -> None:
    block = Block(eps=1e-6)
    for window in (16, 128):
        with pytest.raises(PlanError, match=r"layer 0 of"):
            build(MistralConfig(**SIZES, sliding_window=window), facts={"block": block})
    build(MistralConfig(**SIZES, sliding_window=None), facts={"block": block})
    some = kit.config("qwen2", use_sliding_window=True, sliding_window=128, max_window_layers=1)
    assert some.layer_types == ["full_attention", "sliding_attention"]
    with pytest.raises(PlanError, match=r"layer 1 of"):
        build(some, facts={"block": block})


@pytest.mark.parametrize(
    "change", [{"embedding_multiplier": 3.0}, {"residual_multiplier": 0.5}, {"attention_multiplier": 0.2}]
)
def test_multipliers_of_the_layers_are_refused(build: Callable[..., Any], change: dict[str, float]) -> None:
    same = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 6**-0.5}
    block, head = Block(eps=1e-6), Head(scale=0.25)
    build(GraniteConfig(**SIZES, **same, logits_scaling=4.0), facts={"block": block, "head": head})
    with pytest.raises(PlanError, match=REFUSED):
        build(GraniteConfig(**SIZES, **{**same, **change}, logits_scaling=4.0), facts={"block": block, "head": head})


def test_norms_and_residuals_of_another_build_are_refused(kit: SimpleNamespace) -> None:
    """Gemma 2: one added to a norm's weight, four norms a layer, scaled embedding, capped scores."""
    config = Gemma2Config(**SIZES, head_dim=6, sliding_window=16, query_pre_attn_scalar=6, attn_implementation="eager")
    base = AutoModelForCausalLM.from_config(config).eval()
    facts = kit.facts(config, block=Block(eps=1e-6, activation="gelu_tanh"))
    with pytest.raises(PlanError, match=REFUSED):
        agreement.check_decoder(base.model, base, facts, lambda module: None, Compute.of(kit.decoding()))


def test_a_factor_on_the_output_of_a_layer_is_refused(build: Callable[..., Any]) -> None:
    """The final norm would hide it."""

    def prepare(model: Any) -> None:
        for layer in model.model.layers:
            layer.register_forward_hook(lambda module, given, output: output * 1.5)

    with pytest.raises(PlanError, match=REFUSED):
        build(prepare=prepare)


# --- sabotage: the decoder --------------------------------------------------------------------------------------------


def test_a_missing_bias_is_refused_even_where_it_is_zero(
    kit: SimpleNamespace, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without wrapped modules, since an adapter whose modules give the right numbers would be blamed."""
    engine = build(kit.config("qwen2"), adapter=kit.adapter(full=True))
    assert not engine._parts.network.base.model.layers[0].self_attn.k_proj.bias.any()
    monkeypatch.setattr(groups_module, "_biases", lambda layers, weight_od: None)
    with pytest.raises(PlanError, match=r"backend\.decoder: .*apart.*set backend\.decoder: transformers"):
        build(kit.config("qwen2"), adapter=kit.adapter(full=True))


@pytest.mark.parametrize("name", ["base", *ROPES])
def test_angles_of_another_base_or_scaling_are_refused(
    kit: SimpleNamespace, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The decoder turns by angles of base 20,000, or without the model's scaling."""
    theta = 20_000.0 if name == "base" else 10_000.0
    frequencies = theta ** (-torch.arange(0, 12, 2) / 12)

    def angles(self: decoder_module.StreamDecoder, positions: torch.Tensor) -> Any:
        turned = positions.unsqueeze(-1) * frequencies
        return turned.cos(), turned.sin()

    config = kit.config(
        head_dim=12, rope_parameters=ROPES["default" if name == "base" else name], max_position_embeddings=4096
    )
    monkeypatch.setattr(decoder_module.StreamDecoder, "angles", angles)
    if name == "default":  # what stands in is right but for base and scaling (in bf16 the test's loader rounds them)
        kit.engine(config=config)
        return
    with pytest.raises(PlanError, match=REFUSED):
        build(config)


def test_a_low_rank_addition_left_out_is_refused_even_where_it_is_zero(
    kit: SimpleNamespace, build: Callable[..., Any]
) -> None:
    class Careless(type(kit.adapter())):  # type: ignore[misc]
        def low_rank(self, module: Any) -> LowRank | None:
            found = super().low_rank(module)
            return None if found is None else self.wrong(found)

    for wrong in (lambda found: LowRank(found.base), lambda found: replace(found, scale=1.0)):
        adapter = Careless(zero=True)
        adapter.wrong = wrong
        with pytest.raises(PlanError, match=r"^adapter: low_rank\(\) does not .* \[.*torch_agreement\.py:\d+\]"):
            build(adapter=adapter)


def test_rows_that_see_their_neighbours_are_refused(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_kernels.segments import Segment

    of = Compute.of

    def joined(qkv: Any, segments: Any, **more: Any) -> Any:
        return of({}).segment_attention(qkv, (Segment(0, qkv.shape[0], qkv.shape[0]),), **more)

    monkeypatch.setattr(Compute, "of", lambda *given: replace(of(*given), segment_attention=joined))
    with pytest.raises(PlanError, match=r"kernels\.segment_attention=.*set kernels\.segment_attention to torch"):
        build()


# --- sabotage: a kernel -----------------------------------------------------------------------------------------------


class NoMean(torch.autograd.Function):
    """RMSNorm whose gradient lacks its second term."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
        factor = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, factor)
        return x * factor * weight

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, factor = ctx.saved_tensors
        return grad * weight * factor, (grad * x * factor).flatten(0, -2).sum(0), None


def wrong_norm(fault: str) -> Callable[..., Any]:
    """RMSNorm as a plugin brings it, with one mistake."""

    def norm(x: Any, weight: Any, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
        if fault == "raises":
            raise ZeroDivisionError("no norm today")
        if fault == "none":
            return None
        out = NoMean.apply(x, weight, eps) if fault == "no mean" else OPERATIONS["rms_norm"].torch(x, weight, eps)
        out = {"nan": out * float("nan"), "shape": out[..., :-1], "detached": out.detach()}.get(fault, out)
        return (x, out) if residual else out

    return norm


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are right in the few rows that they are tried with first."""
    monkeypatch.setattr("finetooth_torch.device.kernel_trials.check_kernels", lambda *given: None)


@pytest.mark.usefixtures("untried")
def test_attention_that_leaves_out_a_window_is_refused_by_name(kit: SimpleNamespace) -> None:
    if kit.decoder != "auto":
        pytest.skip("of the stream decoder")
    own: Any = OPERATIONS["windowed_attention"].torch

    def whole(qkv: Any, segments: Any, looks: Any, **heads: Any) -> Any:
        return own(qkv, segments, replace(looks, window=0), **heads)

    config = MistralConfig(**SIZES, sliding_window=16)
    family = Mistral().facts(config.to_dict())
    known = {"block": family.block, "per_layer": family.per_layer}
    for function, refused in ((own, False), (whole, True)):
        kernels = {**kit.kernels(), "windowed_attention": PickedKernel("acme", function)}
        by_name = pytest.raises(PlanError, match=r"kernels\.windowed_attention=acme: .*windowed_attention to torch")
        with by_name if refused else nullcontext():
            kit.engine(config=config, facts=known, kernels=kernels)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("fault", ["raises", "none", "nan", "shape", "no mean", "detached"])
@pytest.mark.parametrize("full", [False, True])
def test_a_wrong_kernel_is_refused_by_name_file_and_line(kit: SimpleNamespace, fault: str, full: bool) -> None:
    kernels = {**kit.kernels(), "rms_norm": PickedKernel("acme-norm:acme", wrong_norm(fault))}
    with pytest.raises(PlanError) as refused:
        kit.engine(config=kit.config("qwen3"), adapter=kit.adapter(full=full), kernels=kernels)
    line = str(refused.value)
    assert line.startswith("kernels.rms_norm=acme-norm:acme: ") and "test_torch_agreement.py:" in line
    assert "finetooth" not in line.replace("/finetooth", "") and "report the model" not in line
    assert "no norm today" in line or fault != "raises"
    assert "gradient" in line or fault not in ("no mean", "detached")


@pytest.mark.usefixtures("untried")
def test_a_head_with_a_wrong_gradient_is_refused_by_name(kit: SimpleNamespace) -> None:
    def head(hidden: Any, weight: Any, targets: Any, **named: Any) -> Any:
        return OPERATIONS["linear_logprob"].torch(2 * hidden.detach() - hidden, weight, targets, **named)

    with pytest.raises(PlanError, match=r"kernels\.linear_logprob=acme-head:acme: .*test_torch_agreement\.py"):
        kit.engine(kernels={**kit.kernels(), "linear_logprob": PickedKernel("acme-head:acme", head)})


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("operation", sorted({*STREAM, "linear_logprob"}))
def test_every_operation_that_raises_is_named(kit: SimpleNamespace, operation: str) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise IndexError("no block 7")

    config = kit.config("qwen3" if operation == "norm_rotary" else "llama")
    with pytest.raises(
        PlanError, match=rf"kernels\.{operation}=acme-x:acme: .*no block 7.*set kernels\.{operation} to"
    ):
        kit.engine(kernels={**kit.kernels(), operation: PickedKernel("acme-x:acme", broken)}, config=config)


# --- the head ---------------------------------------------------------------------------------------------------------


def test_a_logit_scale_or_cap_that_the_family_does_not_tell_is_refused(kit: SimpleNamespace) -> None:
    cohere = CohereConfig(**SIZES, logit_scale=0.0625, tie_word_embeddings=False)
    gemma = Gemma2Config(**SIZES, head_dim=6, final_logit_softcapping=30.0)
    for config, head in ((cohere, Head(scale=0.0625)), (gemma, Head(softcap=30.0))):
        base = AutoModelForCausalLM.from_config(config).bfloat16().eval()
        facts = kit.facts(config, head=head, block=None)
        agreement.check_head(base, base, facts)
        for wrong in (Head(), Head(scale=2 * head.scale, softcap=head.softcap), replace(head, softcap=50.0)):
            with pytest.raises(PlanError, match=r"model\.family: the model makes other logits"):
                agreement.check_head(base, base, replace(facts, head=wrong))
            with pytest.raises(PlanError, match=r"model\.family"):  # on either way through the layers
                kit.engine(config=config, facts={"head": wrong, "block": None}, options={"attention": "eager"})


def test_a_model_that_cannot_be_called_so_is_not_refused(kit: SimpleNamespace) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = nn.Linear(24, 24), nn.Linear(24, 61)

        def forward(self, states: Any) -> Any:
            raise AssertionError("states are two-dimensional here")

    agreement.check_head(Strange(), Strange(), kit.facts(kit.config()))


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_one_layer_of_each_kind_is_tried(kit: SimpleNamespace) -> None:
    peft = pytest.importorskip("peft")
    config = kit.config(num_hidden_layers=6)
    base = AutoModelForCausalLM.from_config(config)
    path = kit.facts(config).layer_path
    assert one_of_each_kind(base.model.layers, path, base.config) == [0]
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"layers.3.self_attn.q_proj": 8})
    peft.inject_adapter_in_model(lora, base, "default")
    assert one_of_each_kind(base.model.layers, path, base.config) == [0, 3]
    base.model.layers[4].mlp.down_proj.register_forward_hook(lambda *_: None)
    base.model.layers[5].input_layernorm.variance_epsilon = 0.1
    assert one_of_each_kind(base.model.layers, path, base.config) == [0, 3, 4, 5]
