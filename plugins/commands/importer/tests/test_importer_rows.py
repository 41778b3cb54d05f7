"""Which rows train, and how they are read: the same as in the tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer import files
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]
Reader = Callable[[Any, dict[str, Any]], Any]


def paths(made: Any) -> list[str]:
    """The files that a recipe reads."""
    train = made["data"]["train"]
    return [one["path"] if isinstance(one, dict) else one for one in (train if isinstance(train, list) else [train])]


def axolotl(datasets: Any, **more: Any) -> Account:
    return read_tool({"base_model": "m", "datasets": datasets, "sequence_len": 64, **more}, "axolotl")


def torchtune(**dataset: Any) -> dict[str, Any]:
    kind = dataset.pop("kind", "chat_dataset")
    return read_tool(
        {"dataset": {"_component_": f"torchtune.datasets.{kind}", **dataset}, "epochs": 1}, "torchtune"
    ).recipe


def script(loading: str, folder: Path) -> Account:
    (folder / "train.py").write_text(
        f"rows = {loading}\nSFTTrainer(model='m', args=SFTConfig(max_steps=1), train_dataset=rows)", encoding="utf-8"
    )
    given, tool = files.read(folder / "train.py")
    return read_tool(given, tool, folder / "train.py")


def test_every_data_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets.load_dataset(path, data_files=...)` reads: several files, those of a folder, a pattern."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "in/c.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    for path, named in (
        ("json", ["a.jsonl", "b.jsonl"]),
        ("json", "b.jsonl"),
        ("json", "*.jsonl"),
        ("in", ["c.jsonl"]),
    ):
        rows = datasets.load_dataset(path, data_files=named, split="train", cache_dir=str(tmp_path / "cache"))
        expected = sorted(row["text"] for row in rows)
        loading = f"load_dataset({path!r}, data_files={named!r}, split='train')"
        assert sorted(paths(axolotl([{"path": path, "data_files": named, "type": "completion"}]).recipe)) == expected
        assert sorted(paths(torchtune(source=path, data_files=named))) == expected
        assert sorted(paths(torchtune(kind="alpaca_dataset", source=path, data_files=named))) == expected
        assert sorted(paths(script(loading, tmp_path).recipe)) == expected
    held = axolotl([], test_datasets=[{"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "completion"}])
    assert [one["path"] for one in held.recipe["data"]["eval"]] == ["a.jsonl", "b.jsonl"]


def test_files_of_a_hub_dataset_and_several_data_sets(tmp_path: Path) -> None:
    wanted = {"name": "datasets", "path": "org/rows", "split": "train", "data_files": ["x.jsonl"]}
    one = {"path": "org/rows", "data_files": "x.jsonl", "type": "completion"}
    assert axolotl([one]).recipe["data"]["train"] == {**wanted, "format": "text"}
    assert torchtune(source="org/rows", data_files="x.jsonl")["data"]["train"] == {**wanted, "format": "chat"}
    loading = "load_dataset('org/rows', data_files='x.jsonl', split='train')"
    assert script(loading, tmp_path).recipe["data"]["train"] == wanted
    both = [
        {"_component_": f"torchtune.datasets.{kind}", "source": kind} for kind in ("chat_dataset", "alpaca_dataset")
    ]
    account = read_tool({"dataset": both, "epochs": 1}, "torchtune")
    assert paths(account.recipe) == ["chat_dataset", "alpaca_dataset"]
    assert "dataset[1].source" in {line.key for line in account}


@pytest.mark.parametrize(("split", "outcome"), [("train", "taken"), ("train[:10]", "not taken")])
def test_rows_that_are_skipped_are_a_slice(split: str, outcome: str, outcomes: Outcomes) -> None:
    rows = {"path": "json", "data_files": "rows.jsonl", "type": "pretrain", "split": split, "skip": 100}
    made = read_tool({"base_model": "m", "pretraining_dataset": [rows]}, "axolotl")
    assert made.recipe["data"]["train"]["slice"] == ("[100:]" if outcome == "taken" else "[:10]")
    assert outcomes(made)["pretraining_dataset[0].skip"][0] == outcome


def test_a_slice_of_a_file_is_taken(tmp_path: Path, outcomes: Outcomes) -> None:
    loading = "load_dataset('json', data_files='a.jsonl', split='train[:10]')"
    assert script(loading, tmp_path).recipe["data"]["train"] == "a.jsonl[:10]"
    two = script("load_dataset('json', data_files=['a.jsonl', 'b.jsonl'], split='train[:10]')", tmp_path)
    assert outcomes(two)["dataset_train_split"][0] == "not taken"
    made = axolotl([{"path": "a.jsonl", "split": "train[:10]", "type": "completion"}])
    assert made.recipe["data"]["train"]["slice"] == "[:10]"
    test = axolotl([{"path": "a.jsonl", "split": "test", "type": "completion"}])
    assert outcomes(test)["datasets[0].split"][0] == "not taken"


ASKED = "2 + 2?"
PAIR = {"chosen": "4", "rejected": "5"}
CHATML = {"name": "chatml", "default_system": ""}
"""axolotl's writes a system message where the row has one, whatever the model's own template adds."""
TURNS = {side: [{"role": "user", "content": ASKED}, {"role": "assistant", "content": PAIR[side]}] for side in PAIR}


@pytest.mark.parametrize(
    ("rl", "kind", "row", "renderer"),
    [
        ("dpo", "chatml.intel", {"question": ASKED, "input": "no", **PAIR}, CHATML),
        ("dpo", "llama3.icr", {"input": ASKED, "prompt": "no", **PAIR}, "llama3"),
        ("dpo", "chatml.prompt_pairs", {"prompt": ASKED, **PAIR}, CHATML),
        ("dpo", "llama3.ultra", {"prompt": ASKED, **TURNS}, "llama3"),
        ("dpo", "chatml.argilla_chat", TURNS, CHATML),
        ("orpo", "chat_template.argilla", TURNS, None),
        (
            "dpo",
            "chat_template.default",
            {"messages": TURNS["chosen"][:1], **{k: v[1] for k, v in TURNS.items()}},
            None,
        ),
        ("rm", "bradley_terry.chat_template", {"input": ASKED, **PAIR}, None),
        ("kto", "chatml.argilla", {"instruction": ASKED, "prompt": "no", "completion": "4", "label": True}, CHATML),
        ("kto", "llama3.argilla_chat", {"completion": TURNS["chosen"], "label": True}, "llama3"),
    ],
)
def test_types_of_preference_training(rl: str, kind: str, row: Any, renderer: Any, read_as: Reader) -> None:
    """The type says which columns are read and in which markup: axolotl's prompt_strategies, row by row."""
    account = axolotl([{"path": "a.jsonl", "type": kind}], **({"reward_model": True} if rl == "rm" else {"rl": rl}))
    data = account.recipe["data"]
    assert data.get("renderer") == renderer
    assert renderer is None or [line.outcome for line in account if line.key == "datasets[0].type"] == ["otherwise"]
    example = read_as(data["train"]["format"], row)
    asked, answer = example.prompt[-1], getattr(example, "chosen", None) or example.completion
    assert (asked.role, asked.content) == ("user", ASKED)
    assert [(one.role, one.content) for one in answer] == [("assistant", "4")]


def test_what_a_type_says_and_nothing_here_reads_is_listed(outcomes: Outcomes) -> None:
    for rl, kind, key in (
        ("dpo", "zephyr.nectar", "datasets[0].type"),
        ("grpo", "rewards.transform", "datasets[0].type"),
        (None, "context_qa", "datasets[0].type"),
        ("dpo", {"field_prompt": "q", "prompt_format": "[INST] {prompt}"}, "datasets[0].type.prompt_format"),
        (None, {"field_instruction": "q", "format": "[INST] {instruction}"}, "datasets[0].type.format"),
    ):
        account = axolotl([{"path": "a.jsonl", "type": kind}], **({"rl": rl} if rl else {}))
        assert outcomes(account)[key][0] == "not taken", (kind, list(account))
    raw = axolotl([{"path": "a.jsonl", "type": {"field_prompt": "q"}}], rl="dpo").recipe["data"]["train"]["format"]
    assert raw == {"name": "preference", "prompt": "q", "chosen": "chosen", "rejected": "rejected", "style": "raw"}


def test_torchtunes_alpaca_is_written_in_alpacas_prompt(read_as: Reader) -> None:
    pick = torchtune(kind="alpaca_cleaned_dataset", source="rows.jsonl")["data"]["train"]["format"]
    first, _ = read_as(pick, {"instruction": "Sum.", "input": "1 1", "output": "2"}).messages
    assert first.content == (  # the prompt of Stanford Alpaca, as its repository prints it
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum.\n\n### Input:\n1 1\n\n### Response:\n"
    )
    first, _ = read_as(pick, {"instruction": "Greet.", "input": "", "output": "Hi."}).messages
    assert first.content == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGreet.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("allenai/c4", {"name": "datasets", "path": "allenai/c4", "streaming": True}),
        ([{"path": "allenai/c4", "name": "en", "skip": 9}], {"path": "allenai/c4", "slice": "[9:]", "streaming": True}),
        ("rows.jsonl", None),
        ([{"path": "json", "data_files": ["a/rows.jsonl"], "ds_type": "json"}], None),
    ],
)
def test_a_corpus_of_the_hub_is_read_as_it_comes(given: Any, wanted: dict[str, Any] | None) -> None:
    made = read_tool({"base_model": "m", "pretraining_dataset": given, "streaming": True, "max_steps": 5}, "axolotl")
    source = made.recipe["data"]["train"]
    assert made.recipe["method"] == {"name": "pretrain", "streaming": True}
    assert source == source | wanted if wanted else "streaming" not in source
