"""Rows with images in a session whose model is spread over two ranks: it learns what one process learns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scale"))
from test_primitives import serving

SECTIONS: dict[str, Any] = {
    "adapter": {"name": "lora", "rank": 4}, "optimizer": {"name": "adamw", "learning_rate": 1e-2, "eps": 1e-5},
    "schedule": "constant", "train": {"max_length": 1024, "seed": 1},
}  # fmt: skip
ROWS = (0, 16, 17)
"""A photograph, two images in two turns, and no image."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp-hybrid"])
def test_two_ranks_see_what_one_process_sees(qwen_vl: Path, captions: Path, tmp_path: Path, strategy: str) -> None:
    (tmp_path / "eye").symlink_to(qwen_vl)
    recipe = {**SECTIONS, "model": str(qwen_vl), "data": {"train": str(captions), "cache": "off"}}
    recipe["train"] = {**SECTIONS["train"], "precision": "fp32", "max_steps": 1}
    job = finetooth.session(recipe).job
    how = job.context.data.prepared_as["train"]
    read = job.context.prepare("train", how.rendering, how.limit).data
    data = [replace(read[n], mask=np.ones(len(read[n]), np.bool_), fields={}) for n in ROWS]

    def numbers(session: Any) -> list[float]:
        found = []
        for _ in range(2):
            found += [session.forward_backward(data, "cross_entropy").loss, session.step().grad_norm]
        return [*found, *np.concatenate(session.logprobs(data)).tolist()]

    with serving(tmp_path, "server", model="eye") as (client, _):
        ranked, alone = (numbers(client.session("eye", **SECTIONS, strategy=pick)) for pick in (strategy, None))
    np.testing.assert_allclose(ranked, alone, rtol=1e-4, atol=1e-5)
