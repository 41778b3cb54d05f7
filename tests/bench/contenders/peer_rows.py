"""What all training peers share: the rows as token ids with labels, and the adapter that finetooth starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import padded, rows_digest

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
    missing = [name for name in result.missing_keys if "lora_" in name]
    if result.unexpected_keys or missing:
        raise ValueError(f"the initial adapter does not fit: {result.unexpected_keys[:3]} {missing[:3]}")


def work(ids: list[list[int]], labels: list[list[int]], batch: int) -> dict[str, Any]:
    """What `Meter.trained` asks for, when rows are padded in their order and logits are computed everywhere."""
    lengths = [len(row) for row in ids]
    positions, pairs = padded(lengths, batch)
    trained = [[i for i, label in enumerate(row) if label != -100 and i] for row in labels]
    return {
        "tokens": sum(lengths),
        "positions": positions,
        "head_positions": positions,
        "pairs": pairs,
        "rows_digest": rows_digest(zip(ids, trained, strict=True)),
    }
