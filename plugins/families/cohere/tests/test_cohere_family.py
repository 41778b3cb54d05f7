"""Facts against transformers' own models of the same configs."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from finetooth_cohere.family import Cohere
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_facts, assert_widths


@parametrize_with_checks("finetooth_cohere.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize(("kind", "renderer"), [("cohere", "jinja"), ("cohere2", "cohere2")])
@pytest.mark.parametrize("own", [{}, {"logit_scale": 0.5, "tie_word_embeddings": False}])
def test_facts_are_those_of_the_model(kind: str, renderer: str, own: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **own})
    facts, model = assert_facts(Cohere(), config, rtol=1.3e-6, atol=1e-5)
    assert (facts.kv_heads, facts.ffn_size, facts.renderer) == (2, 40, renderer) and facts.block is not None
    assert_widths(facts, model.model.layers[0])
