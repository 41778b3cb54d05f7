"""axolotl's datasets: where rows lie, how they are read, and in which markup they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_importer.account import Account, number, says_nothing
from finetooth_importer.tools import axolotl_alpaca, axolotl_types, rows
from finetooth_importer.tools.axolotl_keys import COMPARED, TABLES, UNTAKEN, plain_chat

TEMPLATES: Mapping[str, Any] = TABLES["templates"]

READ = frozenset(TABLES["dataset_keys"])
"""Keys of a dataset that are taken, or are a part of what is."""


def read(account: Account, method: str) -> None:
    """Take what says which rows there are, and how they become tokens.

    Args:
        method: as it is called here.
    """
    own_prompt = method == "sft" and axolotl_alpaca.are_alpaca(account.get("datasets"))
    for key, setting in (
        ("datasets", "data.train"),
        ("pretraining_dataset", "data.train"),
        ("test_datasets", "data.eval"),
    ):
        datasets = account.get(key)
        if datasets is None:
            continue
        if key == "datasets" and account.has("pretraining_dataset"):
            account.passes(key, "with both, the tool trains only on pretraining_dataset")
            continue
        datasets = (
            [{"path": datasets}]
            if isinstance(datasets, str)
            else [datasets]
            if isinstance(datasets, dict)
            else datasets
        )
        sources: list[Any] = []
        for place, dataset in enumerate(datasets):
            if isinstance(dataset, dict):
                how = axolotl_types.reading(dataset, method, key, own_prompt)
                sources += _sources(account, f"{key}[{place}]", dataset, how)
            else:
                sources.append(str(dataset))
        if key == "pretraining_dataset" and account.get("streaming"):
            sources = [_streamed(account, source) for source in sources]
        axolotl_alpaca.prompts_of_alpaca(account, key, datasets, own_prompt)
        account.take(key, setting, value=sources if len(sources) > 1 else sources[0])
    _held_out(account)
    _template(account)
    if account.has("default_system_message"):
        account.take("default_system_message", "data.format.system")
        account.set("data.format.name", "chat")
    exact = account.get("dataset_exact_deduplication")
    account.take("dataset_exact_deduplication", "data.deduplicate", value="exact" if exact else "off")
    if account.get("streaming") and method == "pretrain":
        account.take("streaming", "method.streaming")
    account.passes("streaming", "rows are read as they are needed")


def _streamed(account: Account, source: Any) -> Any:
    """A dataset of the hub is read as it comes; a file or a folder is read row by row anyway."""
    made = source if isinstance(source, dict) else {"name": "datasets", "path": source}
    path = str(made.get("path"))
    there = (account.folder or Path()) / path
    hub = made.get("name") == "datasets" and re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).suffix
    return {**made, "streaming": True} if hub and not there.exists() else source


def _held_out(account: Account) -> None:
    share = number(account.get("val_set_size", 0))
    if share and share < 1:
        account.take("val_set_size", "data.eval", value={"fraction": share})
    elif share:
        account.refuse("val_set_size", "held-out rows are a share: data.eval: {fraction: 0.05}, or a file")
    account.passes("val_set_size", "no rows are held out")


def _template(account: Account) -> None:
    """The markup: of the rows' own type, or of the template that is named."""
    template = account.get("chat_template")
    if account.recipe.get("data", {}).get("renderer"):
        note = "axolotl always writes rows of such a type in its own markup"
        account.passes("chat_template", note)
        account.passes("chat_template_jinja", note)
    elif template in TEMPLATES:
        account.take("chat_template", "data.renderer", value=TEMPLATES[str(template)])
        account.compared = template in COMPARED and all(map(plain_chat, account.get("datasets") or ()))
    elif template in ("tokenizer_default", "tokenizer_default_fallback_chatml"):
        account.passes("chat_template", "finetooth uses the model's own markup anyway")
    elif template not in (None, "jinja"):
        account.refuse("chat_template", "the renderer of the model's family is taken; data.renderer names another")
    if account.has("chat_template_jinja"):
        account.take(
            "chat_template_jinja",
            "data.renderer",
            value={"name": "jinja", "template": account.get("chat_template_jinja")},
        )
    account.passes("chat_template", "chat_template_jinja says it")


def _sources(account: Account, where: str, dataset: Mapping[str, Any], reading: axolotl_types.Reading) -> list[Any]:
    """The sources of one dataset, one for each of its files, with how their rows are read."""
    path, split, files = str(dataset.get("path", "")), dataset.get("split"), dataset.get("data_files")
    paths = rows.named(path, files) if files else [path]
    options: dict[str, Any] = {}
    if not any(map(rows.is_local, paths)):
        for theirs, ours in (("split", "split"), ("name", "config"), ("revision", "revision")):
            if not says_nothing(dataset.get(theirs)):
                options[ours] = dataset[theirs]
        if not paths:
            options["data_files"] = rows.listed(files)
    elif split not in (None, "", "train"):
        _part(account, where, str(split), options)
    skipped = dataset.get("skip")
    if not says_nothing(skipped) and "slice" in options:
        account.inside(f"{where}.skip", skipped, "not taken", note="the split has a slice: put both into it")
    elif not says_nothing(skipped):
        options["slice"] = f"[{skipped}:]"
        account.inside(f"{where}.skip", skipped, "taken", "data.train.slice")
    if reading.format:
        options["format"] = reading.format
    for option, value in reading.method.items():
        account.set(f"method.{option}", value)
    _read_as(account, where, dataset, reading)
    return [rows.source(path, **options) if options else path for path in paths or [path]]


def _part(account: Account, where: str, split: str, options: dict[str, Any]) -> None:
    """The split of a local file, which has one, `train`: a slice behind it is taken."""
    name, bracket, part = split.partition("[")
    if bracket and name == "train":
        options["slice"] = f"[{part}"
    else:
        account.inside(f"{where}.split", split, "not taken", note="a file has one split, train: name the other's file")


def _read_as(account: Account, where: str, dataset: Mapping[str, Any], reading: axolotl_types.Reading) -> None:
    """Write down the outcome of a dataset's keys, and of what its type says in addition to the columns."""
    kind = dataset.get("type")
    if reading.lost:
        account.inside(f"{where}.type", kind, "not taken", note=reading.lost)
    if reading.renderer:
        if account.recipe.get("data", {}).get("renderer") not in (None, reading.renderer):
            account.inside(f"{where}.type", kind, "not taken", note="all rows of a run have one markup")
        else:
            account.set("data.renderer", reading.renderer)
            account.inside(f"{where}.type", kind, "otherwise", "data.renderer", axolotl_types.OWN_MARKUP)
    for key in reading.patterns:
        pattern = kind.get(key) if isinstance(kind, dict) and key in kind else dataset.get(key)
        account.inside(f"{where}.type.{key}", pattern, "not taken", note=axolotl_types.PATTERN)
    for name, value in dataset.items():
        if says_nothing(value) or name in reading.patterns:
            continue
        if name == "train_on_eos" and value != "turn":
            account.inside(f"{where}.{name}", value, "otherwise", note="the end of a trained answer always trains")
        elif name == "conversation":
            account.inside(f"{where}.{name}", value, "otherwise", note="the markup of the renderer writes it")
        elif name == "chat_template" and account.get("chat_template") in (None, value) and value in TEMPLATES:
            account.set("data.renderer", TEMPLATES[value])
            account.inside(f"{where}.{name}", value, "taken", "data.renderer")
        elif name not in READ:
            note = UNTAKEN.get(name, "ft plugins explain FORMAT shows what a format reads")
            account.inside(f"{where}.{name}", value, "not taken", note=note)
