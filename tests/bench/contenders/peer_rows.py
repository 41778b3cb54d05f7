"""What all training peers share: the rows as token ids with labels, and the adapter that finetooth starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RATES = {"lora": 2e-4, "full": 2e-5}
"""Learning rate by adapter."""

Messages = list[dict[str, str]]


def prompt_completion(spec: dict[str, Any]) -> list[dict[str, Messages]]:
    """Rows of the supervised workloads: the messages of `prompt` and `completion`."""
    lines = Path(spec["rows_file"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines][: spec["rows"]]


def chat_ids(tokenizer: Any, prompt: Messages, completion: Messages) -> tuple[list[int], list[int]]:
    """Ids of the prompt in the model's own chat markup, and of both up to the end of the last turn.

    The line break that the template writes behind a turn is left out: nothing that trains comes after it.
    """
    texts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False),
        tokenizer.apply_chat_template([*prompt, *completion], tokenize=False).rstrip("\n"),
    ]
    asked, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return asked, both


def windows(spec: dict[str, Any]) -> list[list[int]]:
    """Token ids of the pre-training windows, one more than positions that are predicted."""
    rows: list[list[int]] = json.loads(Path(spec["windows_file"]).read_text(encoding="utf-8"))
    return rows[: spec["windows"]]


def tokenised(spec: dict[str, Any], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows with `input_ids` and `labels`, for trainers that do not tokenise."""
    if spec.get("method") == "pretrain":
        return [{"input_ids": ids, "labels": ids} for ids in windows(spec)]
    rows = []
    for row in prompt_completion(spec):
        prompt, ids = chat_ids(tokenizer, row["prompt"], row["completion"])
        rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    return rows


def take_adapter(model: Any, folder: str) -> None:
    """Give a peft model the initial adapter that finetooth starts from.

    Raises:
        ValueError: it does not fit.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    result = set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))
    missing = [
        name
        for name in result.missing_keys
        if ("lora_" in name and ".ref." not in name)  # a copy of what a model had before, which is DPO's reference
        or name.endswith("score.modules_to_save.default.weight")
    ]
    if result.unexpected_keys or missing:
        raise ValueError(f"the initial adapter does not fit: {result.unexpected_keys[:3]} {missing[:3]}")
