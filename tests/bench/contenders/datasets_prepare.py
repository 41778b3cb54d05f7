"""The usual way to tokenise conversations: `datasets.map` with `apply_chat_template`, a process for every core; twice,
the second time from its cache."""

from __future__ import annotations

import os
from typing import Any

from meter import Meter

MAX_LENGTH = 512
MARKED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}"
)
"""The model's own template with marks around what the assistant says, without which there is no mask."""


def main() -> None:
    """Tokenise and report."""
    meter = Meter()
    spec = meter.spec
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(spec["model_folder"])
    found = {}
    for name in ("cold", "warm"):
        began = meter.now()
        rows = load_dataset("json", data_files=spec["conversations_file"], split="train")
        done = rows.map(
            tokenise_with_mask if spec.get("mask") else tokenise,
            fn_kwargs={"tokenizer": tokenizer},
            remove_columns=rows.column_names,
            num_proc=os.cpu_count(),
        )
        tokens = sum(done["length"])
        found[name] = meter.now() - began
    meter.write(
        rows=len(done),
        tokens=tokens,
        seconds=found["cold"],
        warm_s=found["warm"],
        rows_per_second=len(done) / found["cold"],
    )


def tokenise(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Token ids of a conversation, and which of them the assistant said."""
    prompt = tokenizer.apply_chat_template(
        row["messages"][:-1], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"][:MAX_LENGTH]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :], "length": len(ids)}


def tokenise_with_mask(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Token ids of a conversation with the tokenizer's own mask of what the assistant said."""
    found = tokenizer.apply_chat_template(
        row["messages"],
        chat_template=MARKED,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        truncation=True,
        max_length=MAX_LENGTH,
    )
    ids = found["input_ids"]
    labels = [id_ if said else -100 for id_, said in zip(ids, found["assistant_masks"], strict=True)]
    return {"input_ids": ids, "labels": labels, "length": len(ids)}


if __name__ == "__main__":
    main()
