"""LLaMA-Factory's supervised stage with its own defaults where the workload leaves them open."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

from meter import Meter
from peer_clock import PeerClock
from peer_rows import RATES, prompt_completion


def stand_in_for_torchaudio() -> None:
    """Its audio code imports torchaudio, which has no build for this torch here; text needs none of it."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def data_folder(spec: dict[str, Any]) -> Path:
    """The rows in its own layout, in the model's chat markup; the template `empty` adds none to it."""
    folder = Path(spec["scratch"]) / "data"
    folder.mkdir()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec["model_folder"])
    rows = []
    for row in prompt_completion(spec):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        both = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
        rows.append({"instruction": prompt, "input": "", "output": both[len(prompt) :].rstrip("\n")})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    return folder


def main() -> None:
    """Train and report. Its adapter starts from values of its own, so its losses are near the others', not equal."""
    meter = Meter()
    spec = meter.spec
    stand_in_for_torchaudio()
    import torch
    from llamafactory.train.tuner import run_exp

    clock = PeerClock(meter)
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": spec["model_folder"],
            "dataset": "rows",
            "dataset_dir": str(data_folder(spec)),
            "template": "empty",
            "finetuning_type": spec["adapter"],
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_target": "all",
            "cutoff_len": spec["max_length"],
            "output_dir": spec["scratch"] + "/llamafactory",
            "per_device_train_batch_size": spec["batch_size"],
            "gradient_accumulation_steps": 1,
            "learning_rate": RATES[spec["adapter"]],
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1.0,
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
            "disable_shuffling": True,
            "overwrite_cache": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
        },
        callbacks=[clock.watch()],
    )
    meter.trained(
        **clock.work(),
        rank=16,
        recompute=True,  # its default
        settings={"bf16": True, "disable_gradient_checkpointing": False, "template": "empty"},
    )


if __name__ == "__main__":
    main()
