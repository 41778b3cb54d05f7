"""A LoRA that begins with what a quantised base lost, and one that begins with what the rows make modules read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum

Recipe = dict[str, Any]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "quantization"), [({"init": "loftq", "rank": 16}, "mxfp4"), ({"init": "eva", "init_rows": 4}, None)]
)
def test_it_trains_and_is_read_back(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], losses: Any, tmp_path: Path, adapter: Recipe,
    quantization: str | None,
) -> None:  # fmt: skip
    datum = Datum.from_tokens(list(range(20, 60)))
    sections = {"adapter": {"name": "lora", "rank": 4, **adapter}, "quantization": quantization}
    train = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
    given = recipe(train=train, **{name: part for name, part in sections.items() if part is not None})
    session = finetooth.session(given)
    if quantization:
        whole = finetooth.session(recipe(output=str(tmp_path / "whole"), train=train)).engine.logprobs([datum])[0]
        plain = {**given, "adapter": {"name": "lora", "rank": 4}, "output": str(tmp_path / "plain")}
        rounded = finetooth.session(plain).engine.logprobs([datum])[0]
        begun = session.engine.logprobs([datum])[0]
        assert np.abs(begun - whole).mean() < 0.9 * np.abs(rounded - whole).mean()
    session.run()
    seen = losses(tmp_path / "run")
    assert seen[-1] < seen[0]
    code, out, err = ft("merge", tmp_path / "run")
    assert code == 0, out + err
    again = finetooth.session(recipe(model=str(tmp_path / "run/merged"), output=str(tmp_path / "next"), train=train))
    np.testing.assert_allclose(again.engine.logprobs([datum])[0], session.engine.logprobs([datum])[0], atol=3e-4)
