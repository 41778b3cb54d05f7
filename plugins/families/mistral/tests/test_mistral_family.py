"""Facts against transformers' own models of the same config, and tiny models that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_kit.families import SIZES, assert_facts, assert_widths, train_two_steps
from finetooth_mistral.family import Mistral
from finetooth_toolbox.text.tokenizers import FastTokenizer

OWN = {**SIZES, "head_dim": 10}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
}


def configured(kind: str, **sizes: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **{**OWN, **KINDS[kind], **sizes})


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    facts, model = assert_facts(Mistral(), configured(kind))
    assert (facts.renderer, facts.tied, facts.untargeted) == ("jinja", False, ())
    assert_widths(facts, model.get_submodule(facts.layer_path)[0], feed_forward=kind != "mixtral")


def test_windows_are_said_layer_by_layer() -> None:
    """Mistral 7B v0.1 looks at a window; its successors at everything, which is Llama's layer."""
    config = {**OWN, "model_type": "mistral"}
    facts = Mistral().facts({**config, "sliding_window": 4096})
    assert facts.block is not None and {layer.window for layer in facts.per_layer} == {4096}
    assert not Mistral().facts({**config, "sliding_window": None}).per_layer
    assert Mistral().facts({**config, "model_type": "ministral3"}).block is None


@pytest.mark.parametrize(
    ("config", "version"),
    [
        ({"vocab_size": 32768, "hidden_size": 4096}, "v3"),  # 7B v0.3
        ({"vocab_size": 32768, "hidden_size": 6144, "model_type": "mixtral"}, "v3"),  # 8x22B
        ({"vocab_size": 32768, "hidden_size": 12288}, None),  # Large: v3 or v7
        ({"vocab_size": 32000, "hidden_size": 4096}, None),  # 7B v0.1, v0.2 and their many children
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_theta": 1e6}, "v3-tekken"),  # Nemo
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_parameters": {"rope_theta": 1e8}}, "v7-tekken"),  # Small
        ({"vocab_size": 131072, "hidden_size": 4096, "rope_theta": 1e8}, "v3-tekken"),  # Ministral 8B
        ({"vocab_size": 131072, "hidden_size": 5120, "rope_theta": 1e9}, None),  # Devstral, Magistral
        ({"vocab_size": 131072, "hidden_size": 4096, "rope_theta": 1e6, "model_type": "ministral3"}, None),
    ],
)
def test_the_renderer_is_told_by_the_config(config: dict[str, Any], version: str | None) -> None:
    found = Mistral().facts({**OWN, "model_type": "mistral", **config}).renderer
    assert found == ("jinja" if version is None else {"name": "mistral", "version": version})


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_trains(mistral_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, kind: str) -> None:
    finetooth = pytest.importorskip("finetooth")
    tokenizer = mistral_tokenizer("v3")
    config = configured(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="mistral")
    assert second < first
