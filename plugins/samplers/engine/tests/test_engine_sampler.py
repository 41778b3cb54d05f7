"""The sampler against the conformance kit, and what it takes from an engine."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_enginesampler.sampler import EngineSampler
from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.rollouts import Prompt
from finetooth_kit import ByteTokenizer, FakeEngine, parametrize_with_checks


@parametrize_with_checks("finetooth_enginesampler.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}]
)
def test_an_engine_that_does_not_say_what_it_draws_from_is_refused(settings: dict[str, Any]) -> None:
    """Its log-probabilities would be those of another distribution."""
    engine = FakeEngine(ByteTokenizer())
    with pytest.raises(EngineError, match=r"does not give the probabilities that it sampled from.*temperature 1"):
        EngineSampler().sample(engine, [Prompt("a", "a", (5, 6))], Sampling(max_tokens=3, **settings))
