"""What every contender reads, made once: the model as a transformers folder, the initial adapter, rows, windows,
prompts. It is kept in a folder outside the repository."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from meter import Meter
from peer_rows import chat_ids

ENLARGED = 4
TEXT_CHARACTERS = 8
"""More characters than a token of English prose has on average, so that the text is long enough."""


def main() -> None:
    """Make what is missing, and say where everything is."""
    meter = Meter()
    spec = meter.spec
    folder = Path(spec["cache"])
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(spec["data_folder"])
    model = model_folder(folder, spec["model"])
    found: dict[str, Any] = {"model_folder": str(model), "config": json.loads((model / "config.json").read_text())}
    if "rows" in spec:
        found |= supervised(folder, model, data, int(spec["rows"]))
    if "preferred" in spec:
        found |= preferences(folder, model, data, int(spec["preferred"]))
    if "windows" in spec:
        found |= pretraining(folder, model, data, int(spec["windows"]), int(spec["length"]))
    if "score_rows" in spec:
        found |= scoring(folder, model, data, int(spec["score_rows"]))
        found["enlarged_folder"] = str(enlarged(folder, model))
    if "prompts" in spec:
        found |= prompts(folder, model, data, int(spec["prompts"]))
    if "count" in spec:
        found["conversations_file"] = str(conversations(folder, data, int(spec["count"])))
    meter.write(**found)


def model_folder(folder: Path, name: str) -> Path:
    """The model, its weights in fp32, as transformers reads it."""
    target = folder / "model"
    if not (target / "tokenizer.json").exists():
        import finetooth

        context = finetooth.session({"model": name}, data=False).job.context
        loaded = context.loader.load(context.model.reference, framework="torch", precision="fp32", device="cpu")
        loaded.save_pretrained(target)
        context.tokenizer.save(target)
    return target


def enlarged(folder: Path, model: Path) -> Path:
    """The model with four times the vocabulary; the new rows are never read or said."""
    target = folder / "model-enlarged"
    if not (target / "tokenizer.json").exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        torch.manual_seed(0)
        loaded.resize_token_embeddings(ENLARGED * loaded.config.vocab_size, mean_resizing=False)
        loaded.save_pretrained(target)
        AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def gsm8k(data: Path, split: str, count: int) -> list[dict[str, str]]:
    """The first rows of GSM8K.

    Raises:
        FileNotFoundError: the data folder lacks it.
    """
    with (data / "sft" / f"gsm8k_{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


def messages(row: dict[str, str]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A row of GSM8K as the messages of a prompt and of its completion."""
    return [{"role": "user", "content": row["question"]}], [{"role": "assistant", "content": row["answer"]}]


def supervised(folder: Path, model: Path, data: Path, count: int) -> dict[str, Any]:
    """Rows with the messages of a prompt and of its completion, and the adapter that a fresh finetooth run of them
    starts from."""
    target = folder / f"rows-{count}.jsonl"
    rows = [dict(zip(("prompt", "completion"), messages(row), strict=True)) for row in gsm8k(data, "train", count)]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    adapter = folder / "adapter"
    if not (adapter / "adapter_config.json").exists():
        import finetooth
        from ours import recipe

        told = {"rows_file": str(target), "adapter": "lora", "batch_size": 1, "precision": "fp32"}
        finetooth.session(
            recipe({**told, "model_folder": str(model), "scratch": str(folder)}), data=False
        ).engine.export(adapter)
    return {"rows_file": str(target), "adapter_folder": str(adapter), "max_length": 512}


LONGEST = 512
"""Tokens of the longer answer with its prompt, of the pairs that are taken: nothing is cut or left out."""


def preferences(folder: Path, model: Path, data: Path, count: int) -> dict[str, Any]:
    """The first pairs of ranked answers that are short enough, and what fresh finetooth runs of dpo and rm start from:
    an adapter, and one with a head."""
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(model), []
    with (data / "preference/oasst_ranked.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            sides = [chat_ids(tokenizer, row["prompt"], row[side])[1] for side in ("chosen", "rejected")]
            if max(map(len, sides)) <= LONGEST and len(rows) < count:
                rows.append({name: row[name] for name in ("prompt", "chosen", "rejected")})
    target = folder / f"pairs-{count}.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = {"rows_file": str(target), "max_length": LONGEST}
    for method in ("dpo", "rm"):
        adapter = folder / f"adapter-{method}"
        if not (adapter / "adapter_config.json").exists():
            import finetooth
            from ours import recipe

            told = {"rows_file": str(target), "adapter": "lora", "batch_size": 2, "precision": "fp32", "method": method}
            told |= {"model_folder": str(model), "scratch": str(folder)}
            finetooth.session(recipe(told)).engine.export(adapter)
        found[f"adapter_{method}"] = str(adapter)
    return found


def pretraining(folder: Path, model: Path, data: Path, count: int, length: int) -> dict[str, Any]:
    """Text for `count` windows, and these windows as token ids for the peers."""
    text = folder / f"text-{count}-{length}.txt"
    windows = folder / f"windows-{count}-{length}.json"
    book = (data / "raw" / "war_and_peace.txt").read_text(encoding="utf-8")
    text.write_text(book[: TEXT_CHARACTERS * count * length], encoding="utf-8")
    if not windows.exists():
        import finetooth
        from ours import recipe

        told = {"text_file": str(text), "adapter": "full", "batch_size": count, "precision": "fp32"}
        told |= {"method": "pretrain", "windows": count, "length": length, "model_folder": str(model)}
        method = finetooth.session(recipe({**told, "scratch": str(folder)})).job.method
        rows = [[*map(int, datum.tokens), int(datum.targets[-1])] for datum in islice(method._data, count)]
        windows.write_text(json.dumps(rows), encoding="utf-8")
    return {"text_file": str(text), "windows_file": str(windows)}


def scoring(folder: Path, model: Path, data: Path, count: int) -> dict[str, Any]:
    """Rows as token ids, and which of them are the answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for row in gsm8k(data, "train", count):
        prompt, ids = chat_ids(tokenizer, *messages(row))
        rows.append({"tokens": ids, "trained": list(range(len(prompt), len(ids)))})
    target = folder / f"score-{count}.json"
    target.write_text(json.dumps(rows), encoding="utf-8")
    return {"score_file": str(target)}


def prompts(folder: Path, model: Path, data: Path, count: int) -> dict[str, Any]:
    """Questions in chat markup, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = []
    for row in gsm8k(data, "test", count):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
        )
        ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    target = folder / f"prompts-{count}.json"
    target.write_text(json.dumps(ids), encoding="utf-8")
    return {"prompts_file": str(target)}


def conversations(folder: Path, data: Path, count: int) -> Path:
    """GSM8K over and over as conversations, each with a number of its own, so that no two rows are equal."""
    target = folder / f"conversations-{count}.jsonl"
    if not target.exists():
        rows = gsm8k(data, "train", 10_000)
        with target.open("w", encoding="utf-8") as file:
            for index in range(count):
                row = rows[index % len(rows)]
                messages = [
                    {"role": "user", "content": f"Task {index}. {row['question']}"},
                    {"role": "assistant", "content": row["answer"]},
                ]
                file.write(json.dumps({"messages": messages}) + "\n")
    return target


if __name__ == "__main__":
    main()
