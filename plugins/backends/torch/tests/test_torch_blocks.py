"""The stream decoder computes each family's layers as the model's own code does: outputs, gradients, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetooth_cohere.family import Cohere
from finetooth_gemma.family import Gemma
from finetooth_glm.family import GLM
from finetooth_gptoss.family import GPTOSS
from finetooth_hooks import Datum, PlanError, Sampling
from finetooth_llama.family import Llama
from finetooth_mistral.family import Mistral
from finetooth_olmo.family import OLMo
from finetooth_phi.family import Phi
from finetooth_torch.decoder.bodies import StreamBody, TransformersBody

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
WINDOW: Mapping[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
SHARED = [5, 9, 11, 3, 7, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33]
ROWS = ([*SHARED, 40, 41, 42], [*SHARED, 50, 51, 52, 53, 54, 55, 56, 57, 58], [12, 13, 14], [*range(20, 55)])

FAMILIES: Mapping[str, tuple[Any, str, Mapping[str, Any]]] = {
    "gemma": (Gemma(), "gemma", {"head_dim": 8}),
    "gemma2": (
        Gemma(), "gemma2",
        {
            "head_dim": 8, **WINDOW, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (Gemma(), "gemma3_text", {"head_dim": 8, **WINDOW, "query_pre_attn_scalar": 5}),
    "cohere": (Cohere(), "cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    "cohere2": (Cohere(), "cohere2", WINDOW),
    "glm": (GLM(), "glm", {"head_dim": 8}),
    "glm4": (GLM(), "glm4", {"head_dim": 8}),
    "smollm3": (Llama(), "smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
    "mistral": (Mistral(), "mistral", {"sliding_window": 6}),
    "ministral": (Mistral(), "ministral", {"head_dim": 8, **WINDOW}),
    "olmo2": (OLMo(), "olmo2", {}),
    "olmo3": (OLMo(), "olmo3", WINDOW),
    "gpt_oss": (GPTOSS(), "gpt_oss", {"head_dim": 8, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi": (Phi(), "phi", {"qk_layernorm": True, "hidden_size": 32}),
    "phi3": (Phi(), "phi3", {"sliding_window": 6}),
}  # fmt: skip
"""The family, and a config that asks for all that is particular to it."""


def prepare(model: Any) -> None:
    """Norms, biases and sinks that show: as they are made, leaving them out would change nothing."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def engines(kit: SimpleNamespace, name: str, *, full: bool, **changes: Any) -> list[Any]:
    """With the stream decoder, and with the model's own code."""
    family, kind, own = FAMILIES[name]
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **own})
    facts = family.facts(config.to_dict())
    known = {field.name: getattr(facts, field.name) for field in fields(facts) if field.name != "renderer"}
    adapter = kit.adapter(full=full, targets=facts.linear_targets)
    return [
        kit.engine(config=config, facts=known, adapter=adapter, prepare=prepare, decoder=decoder, **changes)
        for decoder in ("stream", "transformers")
    ]


@pytest.fixture(autouse=True)
def both_at_once(kit: SimpleNamespace) -> None:
    if kit.decoder == "transformers":
        pytest.skip("these tests compare both")


@pytest.mark.parametrize("full", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_gradients_and_greedy_answers_are_the_models_own(kit: SimpleNamespace, name: str, full: bool) -> None:
    """Rows that share beginnings, longer than windows, in one micro-batch; prompts shorter and longer than windows, of
    which answers grow out, alone and several of a prompt."""
    made = engines(kit, name, full=full, micro_batch_tokens=100_000)
    assert isinstance(made[0]._parts.network.body, StreamBody)
    assert isinstance(made[1]._parts.network.body, TransformersBody)
    data = [Datum.from_tokens(list(row), [0.0, *[1.0] * (len(row) - 1)], id=f"row:{i}") for i, row in enumerate(ROWS)]
    ours, theirs = (engine.forward(data, returns=("logprobs", "hidden")).outputs for engine in made)
    for mine, its in zip(ours, theirs, strict=True):
        for output, expected in its.items():
            assert np.allclose(mine[output], expected, rtol=1e-4, atol=1e-4), output
    for samples in (1, 3):
        sampling = Sampling(max_tokens=14, temperature=0.0, n=samples)
        answers = [engine.generate([[5, 6, 7], SHARED], sampling) for engine in made]
        for mine, its in zip(*([one for rows in answer for one in rows] for answer in answers), strict=True):
            assert mine.tokens == its.tokens
            assert mine.logprobs == pytest.approx(its.logprobs, abs=1e-4)
    first, second = (engine.forward_backward(data, kit.nll).loss for engine in made)
    assert first == pytest.approx(second, rel=1e-5)
    assert kit.relative(*map(kit.gradients, made)) < 1e-4


QUICK = ("gemma2", "gpt_oss")


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in FAMILIES])
def test_half_precision_is_as_near_as_the_models_own(kit: SimpleNamespace, name: str, checkpointing: bool) -> None:
    """To the same model in fp32, with an adapter: outputs, gradients and the likelihood of what was sampled."""
    data = [Datum.from_tokens(list(row), [0.0, *[1.0] * (len(row) - 1)], id=f"row:{i}") for i, row in enumerate(ROWS)]
    exact = engines(kit, name, full=False)[1]
    made = engines(kit, name, full=False, precision="bf16", gradient_checkpointing=checkpointing)
    expected = np.concatenate([out["logprobs"] for out in exact.forward(data, returns=("logprobs",)).outputs])
    apart = []
    for engine in made:
        found = np.concatenate([out["logprobs"] for out in engine.forward(data, returns=("logprobs",)).outputs])
        apart.append(float(np.abs(found - expected).mean()))
        engine.forward_backward(data, kit.nll)
    assert apart[0] < 1.5 * apart[1] + 0.01
    exact.forward_backward(data, kit.nll)
    ours, theirs = (kit.relative(kit.gradients(engine), kit.gradients(exact)) for engine in made)
    assert ours < 1.5 * theirs + 0.02
    sampled = made[0].generate([[5, 6, 7], SHARED], Sampling(max_tokens=14, temperature=1.0, n=2))
    for prompt, answers in zip(([5, 6, 7], SHARED), sampled, strict=True):
        for one in answers:
            row = Datum.from_tokens([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens))
            again = made[0].forward([row], returns=("logprobs",)).outputs[0]["logprobs"]
            assert np.allclose(again[-len(one.tokens) :], one.logprobs, atol=0.1)


WRONG: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"norms": "rms"},
    "gemma2": {"ffn_after": ""},
    "gemma3": {"rotations": ()},
    "cohere2": {"interleaved": False},
    "glm4": {"attention_after": ""},
    "smollm3": {"rotations": ()},
    "phi": {"parallel": False},
    "gpt_oss": {"sinks": "self_attn.q_proj.bias"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_block_that_says_less_is_refused(kit: SimpleNamespace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name][0]

    class Less:
        def facts(self, config: Mapping[str, Any]) -> Any:
            facts = family.facts(config)
            return replace(facts, block=replace(facts.block, **WRONG[name]))

    monkeypatch.setitem(FAMILIES, name, (Less(), *FAMILIES[name][1:]))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"backend\.decoder"):
        engines(kit, name, full=True)
