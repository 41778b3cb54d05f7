"""Scaled positions against what transformers computes when it is given the same in its own words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_core.cli import main
from finetooth_hooks import Datum, RecipeError
from finetooth_kit.tiny_runs import TinyRuns
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ORIGINAL = 64
YARN = {"rope_type": "yarn", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0}
IDS = torch.arange(200).remainder(97)[None]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (YARN, {}),
        ({**YARN, "beta_fast": 16.0, "attention_factor": 1.5}, {}),
        ({"rope_type": "linear", "factor": 4.0}, {}),
        (DYNAMIC, {}),
        (LLAMA3, {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ({**LLAMA3, "low_freq_factor": 2.0}, {"high_freq_factor": 4.0}),
    ],
)
def test_logits_are_those_of_transformers(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any], ours: Any, theirs: Any
) -> None:
    write(tmp_path / "m")
    of_row = ours["rope_type"] == "dynamic"
    original = {} if of_row or ours["rope_type"] == "linear" else {"original_max_position_embeddings": ORIGINAL}
    longest = ORIGINAL if of_row else ORIGINAL * int(ours["factor"])
    wanted = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", max_position_embeddings=longest,
        rope_parameters={"rope_theta": 10000.0, **ours, **theirs, **original},
    ).eval()  # fmt: skip
    loader = loader_of(rope_scaling=ours)
    got = loader.load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(got(IDS).logits, wanted(IDS).logits, rtol=0, atol=0)
    assert loader.describe(str(tmp_path / "m")).config["max_position_embeddings"] == longest


def test_ntk_is_dynamic_scaling_at_the_full_length(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    config = write(tmp_path / "m").config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0}
    wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=4 * ORIGINAL)
    loader = loader_of(rope_scaling={"rope_type": "ntk", "factor": 4.0})
    model = loader.load(str(tmp_path / "m"), framework="torch", precision="fp32", device="cpu")
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, wanted, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "pretrain", "dpo"])
def test_dynamic_rows_train_alike_however_they_are_laid_out(
    tiny_run: TinyRuns, tiny_model_folder: Path, tmp_path: Path, method: str
) -> None:
    """Rows within and beyond 256 positions, packed, padded and one at a time; and what was trained, as transformers
    computes a row of it."""
    rows = []
    for i, times in enumerate((5, 40, 120, 170)):
        said = {"sft": {"completion": f"{i} " * times}, "pretrain": {"text": f"Say {i}. " + f"{i} " * times},
                "dpo": {"chosen": f"{i} " * times, "rejected": f"{i + 1} " * (times // 2 + 3)}}  # fmt: skip
        rows.append({**({} if method == "pretrain" else {"prompt": f"Say {i}."}), **said[method]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"name": str(tiny_model_folder), "loader": {"name": "transformers", "rope_scaling": DYNAMIC}}
    made = []
    for packing, tokens in (("auto", 2048), (False, 2048), ("auto", 512)):
        made.append(tiny_run({
            "model": model, "method": method, "data": {"train": str(tmp_path / "rows.jsonl")},
            "backend": {"name": "torch", "packing": packing},
            "train": {"max_length": 480, "batch_size": 4, "micro_batch_tokens": tokens, "precision": "fp32"},
        }))  # fmt: skip
    for run in made[1:]:
        assert run.losses == pytest.approx(made[0].losses, rel=2e-6)
    assert main(["merge", str(made[0].folder), "--output", str(tmp_path / "merged")]) == 0
    merged = str(tmp_path / "merged")
    config = transformers.AutoConfig.from_pretrained(merged)
    assert config.rope_parameters["rope_type"] == "dynamic" and config.max_position_embeddings == 256
    data = [Datum.from_tokens([i % 97 for i in range(length)]) for length in (30, 301, 401)]
    train = {"max_length": 480, "precision": "fp32", "batch_size": 4, "micro_batch_tokens": 2048}
    found = finetooth.engine({"model": merged, "train": train}).logprobs(data)
    for datum, ours in zip(data, found, strict=True):
        model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        with torch.no_grad():
            logprobs = model(torch.from_numpy(datum.tokens)[None]).logits[0].log_softmax(-1)
        wanted = logprobs.gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


def test_a_model_of_other_positions_is_another_base(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any]
) -> None:
    write(tmp_path / "m")
    digests = {
        loader_of(rope_scaling=scaling).describe(str(tmp_path / "m")).digest
        for scaling in (None, YARN, {**YARN, "factor": 2.0}, LLAMA3)
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("scaling", "config", "setting", "why"),
    [
        ({**YARN, "low_freq_factor": 1.0}, {}, "model.loader.rope_scaling.low_freq_factor", "an option of llama3"),
        (YARN, {"rope_parameters": {**YARN, "original_max_position_embeddings": 16}}, "model.loader.rope_scaling",
         "scaled already (yarn)"),
        (YARN, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "rope_parameters": None},
         "model.loader.rope_scaling", "has no rotary embeddings"),
        (YARN, {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 8},
         "model.loader.rope_scaling", "other rotary embeddings in different layers"),
    ],
)  # fmt: skip
def test_refuses(
    tmp_path: Path, write: Callable[..., Any], loader_of: Callable[..., Any], scaling: Any, config: Any, setting: str,
    why: str,
) -> None:  # fmt: skip
    write(tmp_path / "m")
    file = tmp_path / "m/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    with pytest.raises(RecipeError) as caught:
        loader_of(rope_scaling=scaling).describe(str(tmp_path / "m"))
    assert caught.value.setting == setting and why in str(caught.value)


def test_a_run_on_longer_rows_ends_with_a_model_that_has_them(
    tiny_run: TinyRuns, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """256 positions by the config, rows of more."""
    rows = tmp_path / "long.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"{i} " * 150}) + "\n" for i in range(4)))
    model = {"name": str(tiny_model_folder), "loader": {"name": "transformers", "rope_scaling": YARN}}
    changes = {"data": {"train": str(rows)}, "train": {"max_length": 700, "batch_size": 2}}
    with pytest.raises(RecipeError, match="700 is more than the 256 positions"):
        tiny_run(changes)
    run = tiny_run({**changes, "model": model})
    assert main(["merge", str(run.folder), "--output", str(tmp_path / "merged")]) == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert config.max_position_embeddings == 1024 and config.rope_parameters["rope_type"] == "yarn"
    capsys.readouterr()
    assert main(["export", str(run.folder), "--to", "vllm_lora", "--output", str(tmp_path / "vllm")]) == 0
    overrides = json.loads(capsys.readouterr().out.partition("--hf-overrides '")[2].partition("'")[0])
    assert overrides == {"rope_parameters": config.rope_parameters, "max_position_embeddings": 1024}
    assert main(["merge", str(run.folder / "artifact"), "--output", str(tmp_path / "plain")]) == 0
    shutil.copytree(run.folder / "artifact", tmp_path / "alone")
    assert main(["merge", str(tmp_path / "alone"), "--output", str(tmp_path / "wrong")]) == 2
    assert "rope_scaling is missing" in capsys.readouterr().err


def test_the_recipe_for_longer_rows(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("To be, or not to be, that is the question. " * 100)
    given = [f"model.name={tiny_model_folder}", f"data.train={tmp_path}/books", "data.renderer=chatml",
             "train.max_length=1024"]  # fmt: skip
    recipe = Path(__file__).parents[4] / "docs/recipes/longer-context.yaml"
    assert main(["check", str(recipe), *given]) == 0
    assert "optimizer step" in capsys.readouterr().out
