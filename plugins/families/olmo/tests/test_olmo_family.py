"""Facts against transformers' own models of the same configs."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import SIZES, assert_facts
from finetooth_olmo.family import OLMo

OWN = {**SIZES, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
KINDS: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "olmo3": {},
}  # fmt: skip


@parametrize_with_checks("finetooth_olmo.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_the_model(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **{**OWN, **KINDS[kind]})
    facts, model = assert_facts(OLMo(), config, rtol=1.3e-6, atol=1e-5)
    assert (facts.kv_heads, facts.ffn_size, facts.renderer) == (2, 48, "jinja") and facts.block is not None
    queries = {m.weight.shape for path, m in model.named_modules() if path.endswith("q_proj")}
    assert queries == {(facts.heads * facts.head_dim, 32)}
