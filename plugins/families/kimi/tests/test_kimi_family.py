"""Facts against transformers' own model of the same config, which for Kimi K2 is that of DeepSeek V3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_kimi.family import Kimi
from finetooth_kit import parametrize_with_checks
from finetooth_kit.families import EXPERTS, LATENT, SIZES, assert_facts, train_two_steps
from finetooth_toolbox.text.tokenizers import FastTokenizer

SMALL: dict[str, Any] = {**LATENT, **EXPERTS, "first_k_dense_replace": 1}


@parametrize_with_checks("finetooth_kimi.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("queries", [16, None])
def test_facts_are_those_of_the_model(queries: int | None) -> None:
    config = transformers.AutoConfig.for_model("deepseek_v3", **{**SIZES, **SMALL, "q_lora_rank": queries})
    facts, _ = assert_facts(Kimi(), config)
    assert (facts.renderer, facts.block) == ("kimi_k2", None)
    assert ("q_a_proj" in facts.linear_targets) is bool(queries)


def test_a_tiny_model_trains(tokenizers: Callable[[str], FastTokenizer], tmp_path: Path) -> None:
    """As Moonlight, which has the config of DeepSeek V3 and this markup."""
    finetooth = pytest.importorskip("finetooth")
    tokenizer = tokenizers("instruct")
    sizes = {**SIZES, **SMALL, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 512}
    config = transformers.AutoConfig.for_model("deepseek_v3", **sizes)
    first, second = train_two_steps(finetooth.run, tmp_path, config, tokenizer, renderer="kimi_k2")
    assert second < first
