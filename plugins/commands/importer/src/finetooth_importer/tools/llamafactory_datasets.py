"""Datasets of LLaMA-Factory: what `dataset_info.json` says of each, as a source of the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_importer.account import Account
from finetooth_importer.tools import shared

COLUMNS: Mapping[str, str] = {
    "videos": "no videos are read: show frames as images",
    "audios": "no sound is read",
    "kto_tag": "rows with a label are read by data.format: {name: labelled, label: COLUMN}",
}
"""Columns of a dataset in `dataset_info.json` that no format takes from there."""

HUB = "https://huggingface.co/datasets/"


def listed(account: Account, folder: Path | None) -> Mapping[str, Any] | None:
    """What `dataset_info.json` says, if it is there."""
    inside = account.get("dataset_dir", "data")
    if folder is None or not isinstance(inside, str):
        return None
    for place in (folder / inside, Path(inside), *(parent / inside for parent in folder.parents)):
        file = place / "dataset_info.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            return {name: {**entry, "folder": str(place)} for name, entry in found.items() if isinstance(entry, dict)}
    return None


def source(account: Account, where: str, name: str, known: Mapping[str, Any] | None) -> Any:
    """A dataset as a source of the recipe; its name where nothing is known of it.

    Args:
        where: the key that names it, for the account.
        known: what `listed` found.
    """
    entry = (known or {}).get(name)
    if not isinstance(entry, Mapping):
        return name
    options: dict[str, Any] = {}
    if entry.get("num_samples"):
        options["max_rows"] = int(entry["num_samples"])
    if entry.get("file_name"):
        path = str(Path(str(entry["folder"])) / str(entry["file_name"]))
    elif entry.get("hf_hub_url"):
        path = str(entry["hf_hub_url"]).removeprefix(HUB)
        options |= {
            "split": entry.get("split", "train"),
            **({"config": entry["subset"]} if entry.get("subset") else {}),
        }
    else:
        account.inside(where, name, "not taken", note="neither file_name nor hf_hub_url: ft plugins explain datasets")
        return name
    columns = entry.get("columns") or {}
    for column in ("videos", "audios", "kto_tag"):
        if columns.get(column):
            account.inside(f"{where}.columns.{column}", columns[column], "not taken", note=COLUMNS[column])
    spoken = _spoken(entry)
    if entry.get("ranking"):
        options["format"] = _renamed(
            "preference",
            {
                "prompt": columns.get("messages") or columns.get("prompt"),
                **{name: columns.get(name) for name in ("chosen", "rejected", "tools", "images")},
                **spoken,
                "system_column": columns.get("system"),
            },
        )
    elif spoken:
        options["format"] = _renamed(
            "chat",
            {
                "column": columns.get("messages"),
                "tools": columns.get("tools"),
                "images": columns.get("images"),
                "system_column": columns.get("system"),
                **spoken,
            },
        )
    else:
        options["format"] = _renamed(
            "instruction",
            {
                "instruction": columns.get("prompt"),
                "input": columns.get("query"),
                "output": columns.get("response"),
                "system_column": columns.get("system"),
                "history": columns.get("history"),
            },
        )
    return shared.source(path, **options)


def _spoken(entry: Mapping[str, Any]) -> dict[str, Any]:
    """How messages of a dataset name their parts and roles; nothing where it has no messages."""
    if entry.get("formatting") not in ("sharegpt", "openai"):
        return {}
    tags = entry.get("tags") or {}
    sharegpt = entry["formatting"] == "sharegpt"
    fields = {
        "role": tags.get("role_tag", "from" if sharegpt else "role"),
        "content": tags.get("content_tag", "value" if sharegpt else "content"),
    }
    roles = {
        str(tags[theirs]): ours
        for theirs, ours in (("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system"))
        if theirs in tags and tags[theirs] != ours
    }
    return {"fields": fields, **({"roles": roles} if roles else {})}


def _renamed(name: str, options: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in options.items() if value}
    return {"name": name, **given} if given else name


__all__ = ["listed", "source"]
