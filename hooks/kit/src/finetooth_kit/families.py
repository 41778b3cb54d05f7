"""Tiny random models of a family: its facts against what transformers' own model computes, and two steps of training.

    config = transformers.AutoConfig.for_model("mistral", **SIZES)
    facts, model = assert_facts(Mistral(), config)
    first, second = train_two_steps(finetooth.run, folder, config, tokenizer, renderer="mistral")

Needs torch and transformers, which are imported when a model is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from finetooth_hooks.protocols import Family, ModelFacts

SIZES: Mapping[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of a model that is made in a moment, no two of them equal that could be mistaken for each other."""

MAMBA: Mapping[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
"""Sizes of mixed-in state space layers, for a hidden size of 32."""

LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,  # every head has its own
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
"""And with multi-head latent attention."""

EXPERTS: Mapping[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
"""And with routed experts, as configs after DeepSeek's name them."""

HIGHEST_LOSS = 20.0
"""Nats per token; an untrained model of a few hundred tokens is far below it."""


def tiny_model(config: Any, seed: int = 0) -> Any:
    """A language model of transformers with random weights in fp32, for evaluation.

    One that sees or hears, if its config names that (`architectures`) or its type has only such models.

    Args:
        config: of transformers, as `AutoConfig.for_model` makes it.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = transformers.AutoModelForCausalLM
        sees = type(config) not in text._model_mapping or getattr(config, "architectures", None)
        made = transformers.AutoModelForMultimodalLM if sees else text
        return made.from_config(config).eval().float()


def linear_names(module: Any) -> set[str]:
    """Last names of the linear modules inside a module."""
    linear = import_module("torch").nn.Linear
    return {path.rpartition(".")[2] for path, inside in module.named_modules() if isinstance(inside, linear)}


def assert_facts(family: Family, config: Any, *, rtol: float = 0.0, atol: float = 0.0) -> tuple[ModelFacts, Any]:
    """The facts of a family are those of the model that transformers makes of a config: sizes, module names, whether
    embeddings are tied, and the way from the last hidden states to the logits.

    Args:
        config: of transformers; of a model that also sees, the text's sizes count.
        rtol, atol: by how much the logits may differ.

    Returns:
        the facts and the model, to look closer.
    """
    model, facts, text = tiny_model(config), family.facts(config.to_dict()), config.get_text_config()
    layers = model.get_submodule(facts.layer_path)
    stated = (facts.layers, facts.hidden_size, facts.vocab_size, facts.heads, facts.max_positions)
    sizes = (text.hidden_size, text.vocab_size, text.num_attention_heads, text.max_position_embeddings)
    assert stated == (len(layers), *sizes), f"{stated} instead of {(len(layers), *sizes)}"
    named, known = linear_names(layers), {*facts.linear_targets, *facts.untargeted}
    assert named == known, f"linear modules {sorted(named)}, facts {sorted(known)}"
    assert facts.attention_targets and set(facts.attention_targets) <= set(facts.linear_targets)
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert_logits(facts, model, rtol=rtol, atol=atol)
    assert_layers(facts, layers)
    return facts, model


def assert_layers(facts: ModelFacts, layers: Any) -> None:
    """What the facts say of each layer is so in the model: shapes of linear modules, of experts and their router."""
    linear = import_module("torch").nn.Linear
    assert len(facts.per_layer) in (0, len(layers))
    for number, (layer_facts, layer) in enumerate(zip(facts.per_layer, layers, strict=False)):
        modules = {path: m for path, m in layer.named_modules() if isinstance(m, linear)}
        shapes = {path: (m.in_features, m.out_features) for path, m in modules.items()}
        expected = {**layer_facts.mixing, **layer_facts.feed_forward}
        assert shapes == expected, f"layer {number}: linear modules {shapes}, facts {expected}"
        fused = sum(p.numel() for p in layer.parameters() if p.ndim == 3 and "conv" not in _name(layer, p))
        experts = layer_facts.experts
        matrices = 0 if experts is None else experts.count * (2 + experts.gated) * experts.width * facts.hidden_size
        assert fused == matrices, f"layer {number}: {fused} numbers in experts, facts {matrices}"
        if experts is not None:
            router = layer.get_parameter(f"{experts.router}.weight")
            assert tuple(router.shape) == (experts.count, facts.hidden_size)


def _name(layer: Any, parameter: Any) -> str:
    return next(str(name) for name, other in layer.named_parameters() if other is parameter)


def assert_logits(facts: ModelFacts, model: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Body, head, scale and cap of the facts give the model's own logits."""
    torch = import_module("torch")
    ids = torch.arange(9)[None] + 3
    with torch.no_grad():
        hidden = model.get_submodule(facts.body)(input_ids=ids)[0]
        logits = model.get_submodule(facts.head.module)(hidden) * facts.head.scale
        if facts.head.softcap is not None:
            logits = facts.head.softcap * torch.tanh(logits / facts.head.softcap)
        torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=rtol, atol=atol)


def assert_widths(facts: ModelFacts, layer: Any, *, feed_forward: bool = True) -> None:
    """Heads and sizes of the facts are those of the weights of a layer with Llama's module names.

    Args:
        feed_forward: it has one that is not a mixture.
    """
    attention = layer.self_attn
    assert attention.q_proj.weight.shape == (facts.heads * facts.head_dim, facts.hidden_size)
    assert attention.k_proj.weight.shape == (facts.kv_heads * facts.head_dim, facts.hidden_size)
    if feed_forward:
        assert layer.mlp.up_proj.weight.shape == (facts.ffn_size, facts.hidden_size)


def train_two_steps(
    run: Callable[[Any], Any],
    folder: Path,
    config: Any,
    tokenizer: Any,
    *,
    renderer: str | None = None,
    adapter: Mapping[str, Any] | None = None,
    max_length: int = 512,
) -> tuple[float, float]:
    """Train a tiny model with an adapter by a recipe: the losses of two steps on the same four rows.

    What is trained is in `folder / "run"`.

    Args:
        run: `finetooth.run`.
        config: of transformers; its vocabulary is at least the tokenizer's.
        tokenizer: a `tokenizers.FastTokenizer`.
        renderer: None: the one of the family.
        adapter: None: LoRA on all linear modules.
    """
    tiny_model(config).save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    recipe = {
        "model": str(folder / "model"),
        "data": {
            "train": {"name": "tasks", "task": "family", "count": 4, "seed": 5},
            **({} if renderer is None else {"renderer": renderer}),
        },
        "adapter": dict(adapter or {"name": "lora", "rank": 4, "targets": "all-linear"}),
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"batch_size": 4, "precision": "fp32", "max_length": max_length, "max_steps": 2},
        "trackers": ["jsonl"],
        "output": str(folder / "run"),
    }
    outcome = run(recipe)
    assert outcome.status == "done", outcome
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    first, second = (line["loss"] for line in lines if line["event"] == "step")
    assert 0 < first < HIGHEST_LOSS and 0 < second < HIGHEST_LOSS
    return first, second
