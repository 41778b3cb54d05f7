"""`ft reproduce` trains runs of several methods again, bit for bit, each from a copy of its folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PAIRS = [{"prompt": f"Say {n}", "chosen": f"It is {n}.", "rejected": "No."} for n in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_run_is_reproduced_bit_for_bit_from_a_clone(
    recipe: Callable[..., dict[str, Any]], online_recipe: Callable[..., Any], forks: list[str], tmp_path: Path,
    method: str,
) -> None:  # fmt: skip
    sampled = {"name": "grpo", "num_generations": 4, "max_completion_length": 12}
    given = online_recipe(sampled, {})() if method == "grpo" else recipe(method=method)
    given["train"] |= {"max_steps": 2, "batch_size": 4}
    if method == "dpo":
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
        given["data"] = {"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))

    def ft(*words: str) -> tuple[int, str]:
        done = subprocess.run([*forks, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = ft("run", "recipe.yaml")
    assert code == 0, said
    (tmp_path / "run").rename(tmp_path / "first")
    for clone in ("one", "two"):
        shutil.copytree(tmp_path / "first", tmp_path / clone)
        code, said = ft("reproduce", clone)
        assert code == 0 and f"{clone} is reproduced bit for bit" in said, said
    lines = (tmp_path / "two/metrics.jsonl").read_text().replace('"loss": ', '"loss": 1')
    (tmp_path / "two/metrics.jsonl").write_text(lines)
    code, said = ft("reproduce", "two")
    assert code == 1 and "two is not reproduced bit for bit: step 1: loss differs first" in said
