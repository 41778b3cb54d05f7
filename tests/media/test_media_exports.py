"""What a run on images or sounds exports has the base's tensors, and sees and hears as the run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import transformers
from finetooth_core.cli import main
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from safetensors import safe_open

MODELS = (
    "qwen_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_5",
    "gemma3",
    "glm4v",
    "mistral3",
    "internvl",
    "qwen_audio",
    "glm_asr",
)

OWN = ("glm4v", "mistral3", "internvl")
"""Those with a template of their own in place of the family's."""


def names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in safe_open(file, "np").keys()}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_sees_and_hears(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Path = request.getfixturevalue(name)
    rows: Path = request.getfixturevalue("heard" if name in ("qwen_audio", "glm_asr") else "captions")
    made: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(rows), "cache": "off", **({"renderer": "jinja"} if name in OWN else {})},
        "adapter": {"name": "lora", "rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"max_steps": 2, "batch_size": 4, "max_length": 1024, "precision": "fp32"},
        "evaluate": {"evaluators": []},
        "output": str(tmp_path / "run"),
    }
    assert finetooth.run(made).status == "done"
    assert main(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged")]) == 0
    assert names(tmp_path / "merged") == names(model)
    classes: Any = transformers
    _, loading = classes.AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading.values()), loading
    merged = finetooth.session({**made, "model": str(tmp_path / "merged"), "output": str(tmp_path / "again")})
    how = merged.job.context.data.prepared_as["train"]
    data = [d for d in merged.job.context.prepare("train", how.rendering, how.limit).data if d.media][:3]
    ours = State(StartOptions()).open(str(tmp_path / "run")).engine.logprobs(data)
    before = finetooth.session({**made, "output": str(tmp_path / "before")}).engine.logprobs(data)
    assert len(data) == 3
    for exported, run, base in zip(merged.engine.logprobs(data), ours, before, strict=True):
        np.testing.assert_allclose(exported, run, atol=2e-3)
        assert np.abs(exported - base).max() > 1e-2  # the run had an effect


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_settings_of_the_processor_go_along(adapter: str, gemma3: Path, captions: Path, tmp_path: Path) -> None:
    """Those of the recipe, and what the model's own file says of no image: how many tokens stand for it."""
    changed = [0.4, 0.5, 0.6]
    made: dict[str, Any] = {
        "model": str(gemma3),
        "data": {"train": str(captions), "processor": {"name": "transformers", "image": {"image_mean": changed}}},
        "adapter": adapter,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "train": {"max_steps": 1, "batch_size": 4, "max_length": 1024},
        "evaluate": {"evaluators": []},
        "output": str(tmp_path / "run"),
    }
    assert finetooth.run(made).status == "done"
    whole = tmp_path / "run" / ("artifact" if adapter == "full" else "merged")
    assert adapter == "full" or main(["merge", str(tmp_path / "run")]) == 0
    given, read = (transformers.AutoProcessor.from_pretrained(folder) for folder in (gemma3, whole))
    assert read.image_seq_length == given.image_seq_length == 4
    assert list(read.image_processor.image_mean) == changed != list(given.image_processor.image_mean)
