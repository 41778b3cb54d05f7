"""The reward `llm_judge` asks a model that `ft serve openai` serves, and reads what that model said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_judge import asking
from finetooth_judge.reward import JudgeOptions, build
from finetooth_kit import FakeContext

openai = pytest.importorskip("openai")


def test_a_served_model_judges(serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model says nothing that is a score, so what it says is read as one: the number of its characters."""
    served = serve("openai")
    monkeypatch.setattr("finetooth_judge.reward.score_of", lambda reply, low, high: float(len(reply)))
    options = JudgeOptions(base_url=f"{served.url}/v1", model="tiny", rubric="Be brief.", max_tokens=9)
    found = build(options, FakeContext(tmp_path))(["Why?", "How?"], ["So.", "Like that."], {})
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for score, prompt, answer in zip(found, ("Why?", "How?"), ("So.", "Like that."), strict=True):
            messages = asking.to_score("Be brief.", 0, 10, prompt, answer)
            said = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9)
            assert score == float(len(said.choices[0].message.content)) > 0
