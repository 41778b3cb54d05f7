"""Reads LLaMA-Factory's list of datasets, `dataset_info.json`, as sources of a recipe with their formats.

Its `data/README.md` documents the keys. Defaults, also those of unnamed `columns` or `tags` next to named ones, are
those of its version 0.9.5."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import DataError
from finetooth_toolbox.text.nearest import nearest

FILE = "dataset_info.json"
HUB = "https://huggingface.co/datasets/"
PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
"""Keys for the location of the rows, in LLaMA-Factory's order of lookup."""
KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags", *PLACES)
COLUMNS: Mapping[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": None,
    "messages": "conversations",
    **dict.fromkeys(("system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")),
}
"""Default column names by content, for an entry without `columns`; if an entry has `columns`, unnamed ones are not
read."""
TAGS: Mapping[str, str] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
ROLES: Mapping[str, str] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}
SHAREGPT = ("human", "user", "gpt", "assistant", "system", "tool", "observation")
"""Values of `from` that the formats know without settings."""
MEDIA = ("images", "audios", "videos")
FORMATTINGS = ("alpaca", "sharegpt", "openai")


@dataclass(frozen=True)
class Remark:
    """A remark on a key that was not translated exactly.

    Attributes:
        key: `columns.videos`.
        value: the value in the file.
        text: the reason why it is not translated, or the difference in meaning.
        taken: whether it is translated anyway.
    """

    key: str
    value: Any
    text: str
    taken: bool = False


@dataclass(frozen=True)
class ListedSource:
    """One entry as a source.

    Attributes:
        pick: the pick of the source, with `format` and `max_rows` next to its own options; None: no source can read it.
        remarks: about keys with a changed meaning or without effect.
    """

    pick: Mapping[str, Any] | None
    remarks: tuple[Remark, ...] = ()


def listing(path: Path) -> Path | None:
    """The file of a folder that lists datasets, or the file itself; None if `path` is neither. Never raises."""
    try:
        file = path if path.name == FILE else path / FILE
        if not file.is_file():
            return None
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return path if path.name == FILE else None
    entries = list(content.values()) if isinstance(content, dict) else []
    listed = bool(entries) and all(isinstance(entry, dict) and set(PLACES) & entry.keys() for entry in entries)
    return file if listed else None


def read_listing(file: Path) -> dict[str, Mapping[str, Any]]:
    """The entries of a `dataset_info.json` by the name of the dataset.

    Raises:
        DataError: the file is missing, not JSON, or lists no datasets.
    """
    where = file.as_posix()
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(where, f"it cannot be read: {error.strerror or error}", action="check the path") from error
    except (ValueError, RecursionError) as error:
        at = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where}{at}", f"not JSON: {error}", action="fix the file") from error
    if not isinstance(listing, dict) or not all(isinstance(entry, dict) for entry in listing.values()):
        raise DataError(where, "it lists no datasets", action='write {"NAME": {"file_name": "rows.json"}}')
    return listing


def listed(entries: Mapping[str, Mapping[str, Any]], name: str, folder: Path) -> ListedSource:
    """An entry as a source.

    Args:
        entries: see `read_listing`.
        folder: the file's folder, to which `file_name` is relative.

    Raises:
        DataError: the file has no entry with that name.
    """
    if name not in entries:
        near = nearest(name, list(entries))
        known = ", ".join(sorted(entries)[:20]) or "none"
        action = f"did you mean {near}?" if near else f"it lists {known}"
        raise DataError((folder / FILE).as_posix(), f"no dataset {name!r} in it", action=action)
    return _Entry(entries[name], folder).listed()


class _Entry:
    """One entry during its translation."""

    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        self._entry, self._folder = entry, folder
        self._remarks: list[Remark] = []
        self._columns = self._named("columns", COLUMNS)
        self._tags = self._named("tags", TAGS)
        self._formatting = entry.get("formatting") or "alpaca"

    def listed(self) -> ListedSource:
        entry = self._entry
        for key in entry:
            if key not in KEYS:
                self._unknown("", key, KEYS)
        if self._formatting not in FORMATTINGS:
            self._lost("formatting", f"there are {', '.join(FORMATTINGS)}: give the source a format of its own")
            return ListedSource(None, tuple(self._remarks))
        source = self._source()
        if source is None:
            return ListedSource(None, tuple(self._remarks))
        options = dict(source)
        if entry.get("num_samples"):
            options["max_rows"] = int(entry["num_samples"])
            self._remark(
                "num_samples",
                "finetooth takes the first rows; LLaMA-Factory draws them at random, and "
                "repeats them if there are too few",
            )
        made = self._format()
        return ListedSource(None if made is None else {**options, "format": made}, tuple(self._remarks))

    def _source(self) -> dict[str, Any] | None:
        """The pick of a source for the location of the rows."""
        entry = self._entry
        place = next((key for key in PLACES if entry.get(key)), "")
        if place in ("ms_hub_url", "om_hub_url") and not entry.get("hf_hub_url"):
            self._lost(place, "finetooth does not load from this hub: download it, and write its folder as file_name")
            return None
        if place == "script_url":
            self._lost(place, "code of a dataset does not run: write its rows to a file, and name that as file_name")
            return None
        if not place:
            self._remarks.append(Remark("file_name", None, "neither file_name nor hf_hub_url says where its rows are"))
            return None
        if place != "hf_hub_url":
            path = str(entry[place]) if place == "cloud_file_name" else str(self._folder / str(entry[place]))
            if (
                any(self._columns[name] for name in MEDIA)
                and place == "file_name"
                and Path(str(entry[place])).parent != Path()
            ):
                self._remark(
                    "file_name",
                    "finetooth looks for files named in rows in the data file's folder, LLaMA-Factory next to "
                    "dataset_info.json",
                )
            return source_of(path)
        if entry.get("folder"):
            self._lost("folder", "a folder of a repository is not picked: download it, and write it as file_name")
        subset = {"config": str(entry["subset"])} if entry.get("subset") else {}
        path = str(entry[place]).removeprefix(HUB).strip("/")
        return {"name": "datasets", "path": path, "split": entry.get("split") or "train", **subset}

    def _format(self) -> Any:
        """The pick of a format."""
        columns = self._columns
        spoken = self._spoken()
        about = {"tools": columns["tools"] or "", "system_column": columns["system"] or "", **spoken}
        media = {name: columns[name] for name in MEDIA if columns[name]}
        first = columns["messages"] if spoken else columns["prompt"]
        if self._formatting == "openai":
            self._remark(
                "formatting", "LLaMA-Factory adds 'detailed thinking off' to the system message, finetooth adds nothing"
            )
        if columns["kto_tag"]:
            answer = "" if spoken else columns["response"] or ""
            return {"name": "labelled", "prompt": first, "completion": answer, "label": columns["kto_tag"], **about,
                    **media, **self._joined_columns()}  # fmt: skip
        if self._entry.get("ranking"):
            if not columns["chosen"] or not columns["rejected"]:
                self._lost("ranking", "columns.chosen and columns.rejected have to say where the answers are")
                return None
            prompt = {"prompt": first} if first else {}
            answers = {name: columns[name] for name in ("chosen", "rejected")}
            return {"name": "preference", **prompt, **answers, **about, **media, **self._joined_columns()}
        if spoken:
            return {"name": "chat", "column": columns["messages"] or "conversations", **about, **media}
        if not columns["response"]:
            return {"name": "text", "column": first or "text"}
        for name in ("tools", *MEDIA):
            if columns[name]:
                self._lost(f"columns.{name}", "rows of instructions have none: write them as messages (sharegpt)")
        return {"name": "instruction", "instruction": first or "instruction", "input": columns["query"] or "",
                "output": columns["response"], "separator": "\n", "system_column": columns["system"] or "",
                "history": columns["history"] or ""}  # fmt: skip

    def _joined_columns(self) -> dict[str, Any]:
        """The columns that join a prompt of one column."""
        if self._formatting != "alpaca":
            return {}
        if self._columns["history"]:
            self._lost("columns.history", "of answers that are compared or labelled: write them as messages (sharegpt)")
        return {"input": self._columns["query"], "separator": "\n"} if self._columns["query"] else {}

    def _spoken(self) -> dict[str, Any]:
        """Options for the names of message parts and roles; empty if no column holds messages."""
        if self._formatting == "alpaca":
            return {}
        tags = self._tags
        fields = {"role": tags["role_tag"] or "from", "content": tags["content_tag"] or "value"}
        known = SHAREGPT if fields["role"] == "from" else tuple(ROLES.values())
        roles = {tags[tag]: role for tag, role in ROLES.items() if tags[tag] and tags[tag] not in known}
        function = tags["function_tag"]
        if function not in (None, TAGS["function_tag"], tags["assistant_tag"], "assistant"):
            self._lost("tags.function_tag", f"calls are read from {TAGS['function_tag']} and tool_calls: rename it")
        return {"fields": fields, **({"roles": roles} if roles else {})}

    def _named(self, key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """`columns` or `tags`: all defaults, or only the named ones."""
        named = self._entry.get(key)
        if not isinstance(named, Mapping):
            return dict(defaults)
        for name in named:
            if name not in defaults:
                self._unknown(f"{key}.", name, tuple(defaults))
        return {name: named.get(name) for name in defaults}

    def _unknown(self, prefix: str, key: Any, known: tuple[str, ...]) -> None:
        near = nearest(str(key), list(known))
        self._lost(f"{prefix}{key}", f"unknown key{f'; did you mean {near}?' if near else ''}")

    def _lost(self, key: str, why: str) -> None:
        self._remarks.append(Remark(key, self._value(key), why))

    def _remark(self, key: str, text: str) -> None:
        self._remarks.append(Remark(key, self._value(key), text, taken=True))

    def _value(self, key: str) -> Any:
        value: Any = self._entry
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def source_of(path: str) -> dict[str, Any]:
    """The pick of the source for a file or a folder, by its name, or for an address to download."""
    if "://" in path:
        return {"name": "remote", "path": path}
    match = re.search(r"\.(\w+)(\.gz|\.zst)?$", path)
    ending = match[1].lower() if match else ""
    names = {
        **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
        **dict.fromkeys(("json", "csv", "tsv", "parquet", "arrow"), "tables"),
        **dict.fromkeys(("txt", "md"), "text"),
    }
    return {"name": names[ending], "path": path} if ending in names else {"name": "datasets", "path": path}


def remark_lines(remarks: tuple[Remark, ...], where: str) -> Iterator[str]:
    """Remarks as lines for the plan."""
    for remark in remarks:
        yield f"{where}: {remark.key}{'' if remark.taken else ' is not taken'}: {remark.text}"


__all__ = ["FILE", "ListedSource", "Remark", "listed", "listing", "read_listing", "remark_lines", "source_of"]
