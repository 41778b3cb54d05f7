"""Record what LLaMA-Factory makes of the rows in `data`: the messages it reads, and tokens and labels by template.

Run in an environment that has it (0.9.5; nothing here does):

    pip install llamafactory==0.9.5
    python tests/parity/llamafactory/record.py

It writes `messages.json`, `masks.json` and `cuts.json` beside itself: facts about what it does, none of its text or
code.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from byte_tokenizer import write_tokenizer

HERE = Path(__file__).resolve().parent
LENGTHS = (6, 11, 17, 24, 31, 38, 46, 53, 61, 79, 97, 120, 150, 177, 178)


def stand_in_for_torchaudio() -> None:
    """Its audio code imports torchaudio, which not every torch has a build of; text needs none of it."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def read_rows() -> dict[str, list[dict[str, Any]]]:
    """Every dataset of `data` by its own parser and converters."""
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list

    arguments = SimpleNamespace(dataset_dir=str(HERE / "data"), media_dir=str(HERE / "data"), streaming=False)
    names = list(json.loads((HERE / "data/dataset_info.json").read_text(encoding="utf-8")))
    found = {}
    for attributes in get_dataset_list(names, arguments.dataset_dir):
        converter = get_dataset_converter(attributes.formatting, attributes, arguments)
        text = (HERE / "data" / attributes.dataset_name).read_text(encoding="utf-8")
        lines = attributes.dataset_name.endswith(".jsonl")
        rows = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        found[names[len(found)]] = [converter(row) for row in rows]
    return found


def masks(rows: dict[str, list[dict[str, Any]]], cases: dict[str, Any]) -> dict[str, Any]:
    """Tokens and labels of the supervised stage, by template and dataset."""
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from transformers import AutoTokenizer

    made: dict[str, Any] = {}
    for name, case in cases["templates"].items():
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder), case)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        arguments = SimpleNamespace(
            template=name, train_on_prompt=False, mask_history=False, cutoff_len=100_000, tool_format=None,
            default_system=None, enable_thinking=True, preserve_thinking=False,
        )  # fmt: skip
        template = get_template_and_fix_tokenizer(tokenizer, arguments)
        template.mm_plugin = get_mm_plugin("base")  # some ask for a processor of images, which text needs none of
        processor = SupervisedDatasetProcessor(
            template=template, tokenizer=tokenizer, processor=None, data_args=arguments
        )
        made[name] = {}
        for dataset in (*cases["datasets"], *case.get("datasets", ())):
            columns = {key: [row[key] for row in rows[dataset]] for key in rows[dataset][0]}
            done = processor.preprocess_dataset(columns)
            made[name][dataset] = [
                {"input_ids": list(map(int, ids)), "labels": list(map(int, labels))}
                for ids, labels in zip(done["input_ids"], done["labels"], strict=True)
            ]
    return made


def cuts(rows: dict[str, list[dict[str, Any]]], cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens and labels of rows that are longer than its `cutoff_len`, of one template, by stage and settings."""
    from llamafactory.data.processor import PairwiseDatasetProcessor, SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from transformers import AutoTokenizer

    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), cases["templates"]["llama3"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for stage, processor, dataset, settings in (
        ("sft", SupervisedDatasetProcessor, "lessons", {}),
        ("sft", SupervisedDatasetProcessor, "lessons", {"mask_history": True}),
        ("sft", SupervisedDatasetProcessor, "lessons", {"train_on_prompt": True}),
        ("sft", SupervisedDatasetProcessor, "chats", {}),
        ("dpo", PairwiseDatasetProcessor, "pairs_of_text", {}),
    ):
        for length in LENGTHS:
            arguments = SimpleNamespace(**{
                "template": "llama3", "train_on_prompt": False, "mask_history": False, "cutoff_len": length,
                "tool_format": None, "default_system": None, "enable_thinking": True, "preserve_thinking": False,
                **settings,
            })  # fmt: skip
            template = get_template_and_fix_tokenizer(tokenizer, arguments)
            made = processor(template=template, tokenizer=tokenizer, processor=None, data_args=arguments)
            done = made.preprocess_dataset({key: [row[key] for row in rows[dataset]] for key in rows[dataset][0]})
            sequences = [
                {"input_ids": list(map(int, ids)), "labels": list(map(int, labels))}
                for part in ("", "chosen_", "rejected_")
                for ids, labels in zip(done.get(f"{part}input_ids", ()), done.get(f"{part}labels", ()), strict=True)
            ]
            about = {"stage": stage, "dataset": dataset, "cutoff_len": length, **settings}
            found.append({"given": about, "sequences": sequences})
    return found


def main() -> None:
    stand_in_for_torchaudio()
    cases = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
    rows = read_rows()
    data = str(HERE / "data") + "/"
    said = {
        name: [{key: json.loads(json.dumps(value).replace(data, "")) for key, value in row.items()} for row in several]
        for name, several in rows.items()
    }
    version = importlib.metadata.version("llamafactory")
    made = {"messages.json": said, "masks.json": masks(rows, cases), "cuts.json": {"llama3": cuts(rows, cases)}}
    for file, found in made.items():
        text = json.dumps({"llamafactory": version, **found}, ensure_ascii=False, separators=(",", ":"))
        (HERE / file).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
