"""Rotary angles that depend on the length of a sequence: what a new model of transformers computes of each row alone,
in float64, whatever shares its row, its micro-batch or the engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import DataError, EngineError, PlanError, Sampling
from finetooth_hooks.protocols import Head, ModelInfo
from finetooth_kit import entries_of
from finetooth_kit.fake_context import TRAIN
from finetooth_torch.attention.handing import handing
from finetooth_torch.attention.slices import Slices
from finetooth_torch.backend import TorchBackend, TorchOptions
from finetooth_torch.layout.angles import turn_by_length
from finetooth_torch.layout.shared_rows import find_rows
from finetooth_torch.planning.attention import AttentionChoice
from torch import nn

pytestmark = pytest.mark.parametrize("kit", ["transformers"], indirect=True)

ORIGINAL = 12
SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 1.7, "rope_theta": 100.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.5, 3.0, 6.0],
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
CONFIGS = {
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "longrope": (
        "phi3",
        {"rope_parameters": LONG, "max_position_embeddings": 64, "original_max_position_embeddings": ORIGINAL},
    ),
    "in some layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default",
         "rope_theta": 50.0}}, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4,
         "max_position_embeddings": ORIGINAL},
    ),
}  # fmt: skip


def config_of(name: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind, more = CONFIGS[name]
    return CONFIG_MAPPING[kind](**SIZES, **more)


def engine_of(kit: SimpleNamespace, name: str, packing: Any, **more: Any) -> Any:
    facts = {"block": None, "head": Head(), "tied": False, "max_positions": 64}
    train = {"precision": "fp64", "micro_batch_tokens": 220, **more}
    return kit.engine(
        config=config_of(name), adapter=kit.adapter(full=True), facts=facts, options={"packing": packing}, **train
    )


def of_a_new_model(kit: SimpleNamespace, name: str, tokens: Any) -> tuple[Any, torch.Tensor]:
    """A model that has read nothing before, and the log-probabilities that it gives to whatever may come next."""
    model = kit.loader(config_of(name)).load("", framework="torch", precision="fp64", device="cpu")
    logits = model(torch.as_tensor(np.array(tokens))[None], use_cache=False).logits[0]
    return model, logits.log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_row_is_computed_as_alone(kit: SimpleNamespace, name: str, packing: bool) -> None:
    """Rows shorter and longer than the model's positions, the longest first and last. Gradients as far as transformers
    computes its norms, which it does in float32."""
    data = sorted(kit.data(14, seed=3), key=len)
    data = [*data[::-1], *data]
    data = [replace(datum, id=f"row:{i}") for i, datum in enumerate(data)]
    assert min(map(len, data)) < ORIGINAL < max(map(len, data))
    engine = engine_of(kit, name, packing)
    assert (engine._parts.network.rows.filling is not None) == packing
    scores = engine.logprobs(data)
    result = engine.forward_backward(data, kit.nll)
    expected: dict[str, np.ndarray] = {}
    whole = 0.0
    for datum, found in zip(data, scores, strict=True):
        model, logprobs = of_a_new_model(kit, name, datum.tokens)
        wanted = logprobs.gather(1, torch.from_numpy(np.array(datum.targets))[:, None])[:, 0]
        np.testing.assert_allclose(found, np.where(datum.mask, wanted.detach().numpy(), 0), rtol=0, atol=1e-12)
        loss = -(wanted * torch.from_numpy(np.array(datum.fields["weights"] * datum.mask))).sum()
        loss.backward()
        whole += float(loss.detach())
        for path, parameter in model.named_parameters():
            expected[path] = expected.get(path, 0) + parameter.grad.numpy()
    counted = whole / result.loss
    assert kit.relative(kit.gradients(engine), {path: of / counted for path, of in expected.items()}) < 1e-6


def test_positions_that_ranks_divide_have_the_angles_of_whole_rows(kit: SimpleNamespace) -> None:
    from transformers import AutoModelForCausalLM

    body = AutoModelForCausalLM.from_config(config_of("dynamic")).eval().base_model
    assert turn_by_length(body)
    lengths, x = ((20, 4), (5, 19)), torch.zeros(1, dtype=torch.float64)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with handing(lengths):
        whole = body.rotary_emb(x, positions)
    slices = Slices(SimpleNamespace(rank=1, world=2))  # type: ignore[arg-type]
    own = slices.columns(24, torch.device("cpu"))
    with handing(lengths, slices):
        parts = body.rotary_emb(x, positions[:, own])
    for part, of_whole in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, of_whole[:, own], rtol=0, atol=0)


def test_code_of_a_model_that_turns_by_the_longest_row_is_padded(kit: SimpleNamespace) -> None:
    from transformers import AutoModelForCausalLM

    body = AutoModelForCausalLM.from_config(config_of("dynamic"), attn_implementation="eager").eval().base_model

    class Own(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = (module,)

        def forward(self, x: Any, position_ids: Any) -> Any:
            return self.module[0](x, position_ids)

    body.rotary_emb = Own(body.rotary_emb)
    eager = AttentionChoice({}, {"full": next(iter(entries_of("finetooth_eager.plugin")))}, ())  # type: ignore[dict-item]
    assert "by the longest sequence in the batch (dynamic)" in find_rows(body, eager).obstacle


def greedy(kit: SimpleNamespace, name: str, prompt: list[int], most: int) -> list[int]:
    """Token by token, each from a new model that reads all before it."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most and tokens[-1] != 1:
        tokens.append(int(of_a_new_model(kit, name, tokens)[1][-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("name", "lengths"), [("dynamic", (3, 7)), ("longrope", (3, 7, 20))])
def test_sampling_keeps_to_the_lengths_within_which_angles_stay(
    kit: SimpleNamespace, name: str, lengths: tuple[int, ...]
) -> None:
    """A row ends with the model's own positions; longrope's longer prompts have the other frequencies throughout."""
    engine = engine_of(kit, name, "auto")
    engine.logprobs(kit.data(3, seed=3))  # some long rows before
    prompts = [np.random.default_rng(n).integers(2, 60, n).tolist() for n in lengths]
    found = [of[0].tokens for of in engine.generate(prompts, Sampling(max_tokens=12, temperature=0.0))]
    for prompt, tokens in zip(prompts, found, strict=True):
        room = min(12, (ORIGINAL if len(prompt) < ORIGINAL else 64) - len(prompt))
        assert list(tokens) == greedy(kit, name, prompt, room)


@pytest.mark.parametrize(("name", "length"), [("dynamic", 12), ("dynamic", 20), ("longrope", 12)])
def test_prompts_whose_angles_would_change_are_refused(kit: SimpleNamespace, name: str, length: int) -> None:
    with pytest.raises(EngineError, match=f"prompt 1 has {length} tokens, and from 12 positions on the rotary angles"):
        engine_of(kit, name, "auto").generate([[5], [5] * length], Sampling(max_tokens=1))


def test_a_run_that_samples_longer_rows_is_refused_by_its_plan(kit: SimpleNamespace) -> None:
    def plan(name: str, max_length: int, *needs: str) -> None:
        config = config_of(name)
        request = kit.plan_request(
            replace(kit.facts(kit.config()), block=None), needs=frozenset(needs),
            model=ModelInfo("tiny", "test:tiny", "llama", config.to_dict(), 10_000, 0),
            train=replace(TRAIN, max_length=max_length),
        )  # fmt: skip
        TorchBackend(TorchOptions(), kit.context).plan(request)

    plan("dynamic", 12, "generate")
    plan("dynamic", 20)
    plan("longrope", 20, "generate")
    with pytest.raises(
        PlanError, match=r"train\.max_length=20: the run samples, and from 12 .*at most 12, or rope_sca"
    ):
        plan("dynamic", 20, "generate")


def test_paths_of_several_lengths_are_refused(kit: SimpleNamespace) -> None:
    (datum,) = kit.data(1, longest=9)
    parents = np.arange(len(datum)) - 1
    parents[-1] = 0
    with pytest.raises(DataError, match=r"rotary angles \(dynamic\) depend on the length"):
        engine_of(kit, "dynamic", "auto").logprobs([replace(datum, parents=parents)])
