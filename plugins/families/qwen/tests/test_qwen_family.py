"""Facts against transformers' own models of the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetooth_kit import parametrize_with_checks
from finetooth_kit.fake_context import FakeContext
from finetooth_kit.families import SIZES, assert_facts, assert_widths, linear_names
from finetooth_qwen.family import Qwen

OWN = {**SIZES, "num_hidden_layers": 3}


@parametrize_with_checks("finetooth_qwen.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "renderer"), [("qwen2", "qwen"), ("qwen3", "qwen3")])
def test_facts_are_those_of_the_model(kind: str, renderer: str, tied: bool) -> None:
    own = {"head_dim": 10} if kind == "qwen3" else {}
    config = transformers.AutoConfig.for_model(kind, **{**OWN, **own, "tie_word_embeddings": tied})
    facts, model = assert_facts(Qwen(), config)
    assert (facts.renderer, facts.tied, facts.untargeted) == (renderer, tied, ())
    layer = model.get_submodule(facts.layer_path)[0]
    assert_widths(facts, layer)
    assert linear_names(layer) == set(facts.linear_targets) > set(facts.attention_targets)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS,
    "qwen3_next": EXPERTS,
    "qwen3_5_text": {},
    "qwen3_5_moe_text": EXPERTS,
    "qwen3_5": {},
    "qwen3_5_moe": EXPERTS,
}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_adapters_go_onto_full_attention_and_feed_forwards(kind: str, tmp_path: Path) -> None:
    """And nothing else: not onto linear attention, routers, or the gate of a shared expert. Qwen3.5 is published as a
    model that sees, whose text lies elsewhere in it."""
    sizes = {**OWN, "num_hidden_layers": 8, "head_dim": 8, **HYBRIDS[kind]}
    nested = kind in ("qwen3_5", "qwen3_5_moe")
    config = transformers.AutoConfig.for_model(kind, **({"text_config": sizes} if nested else sizes))
    with torch.device("meta"):
        built: Any = transformers.AutoModelForMultimodalLM if nested else transformers.AutoModelForCausalLM
        model = built.from_config(config)
    facts = Qwen(FakeContext(tmp_path, installed=True)).facts(
        {**config.to_dict(), "architectures": [type(model).__name__]}
    )
    assert facts.towers == (("model.visual",) if nested else ()) and bool(facts.tower_parameters) == nested
    assert (facts.hidden_size, facts.layers, facts.head_dim, facts.block) == (24, 8, 8, None)
    assert facts.renderer == {"qwen3_moe": "qwen3", "qwen3_next": "jinja"}.get(kind, "qwen3_5")
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    full = set(range(8)) if kind == "qwen3_moe" else {3, 7}
    chosen = set()
    for path, module in model.get_submodule(facts.layer_path).named_modules():
        if isinstance(module, torch.nn.Linear) and path.rpartition(".")[2] in facts.linear_targets:
            number, _, inside = path.partition(".")
            chosen.add((int(number), inside.rpartition(".")[0]))
    plain = {"qwen3_5_text": "mlp", "qwen3_5": "mlp", "qwen3_moe": "", "qwen3_next": ""}
    feed_forward = plain.get(kind, "mlp.shared_expert")
    wanted = {(i, "self_attn") for i in full} | {(i, feed_forward) for i in range(8) if feed_forward}
    assert chosen == wanted


def test_a_mixture_with_a_dense_layer_has_its_feed_forward() -> None:
    config = {**OWN, "model_type": "qwen3_moe", **EXPERTS}
    assert "up_proj" not in Qwen().facts(config).linear_targets
    assert "up_proj" in Qwen().facts({**config, "mlp_only_layers": [1]}).linear_targets


@pytest.mark.parametrize(
    ("config", "renderer"),
    [
        ({"model_type": "qwen2", "max_position_embeddings": 131072}, "qwen"),
        ({"model_type": "qwen3", "max_position_embeddings": 40960}, "qwen3"),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, "qwen3"),  # base models
        ({"model_type": "qwen3", "max_position_embeddings": 262144}, "jinja"),  # of July 2025: thinking, or not at all
        ({"model_type": "qwen3_moe", "max_position_embeddings": 40960}, "qwen3"),
        ({"model_type": "qwen3_next", "max_position_embeddings": 262144}, "jinja"),
    ],
)
def test_the_renderer_is_told_by_type_and_positions(config: dict[str, Any], renderer: str) -> None:
    assert Qwen().facts({**OWN, **config}).renderer == renderer
