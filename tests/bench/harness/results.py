"""Result files: one JSON file for each workload, in which a run of some contenders replaces theirs and keeps the
others'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.workloads import WORKLOADS

Results = Mapping[str, Mapping[str, Any]]
"""What the files say, by the workload's name."""

DROPPED = ("answers", "greedy", "max_rss_bytes", "shapes")
"""Parts of a contender's answer that are compared and then not kept."""


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All result files that are there, by name; those of workloads first, in their order."""
    names = [workload.name for workload in WORKLOADS]
    paths = [folder / f"{name}.json" for name in names]
    paths += [path for path in sorted(folder.glob("*.json")) if path.stem not in names]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside and rename, so that a file is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    beside.replace(path)


def kept(run: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run goes into the file."""
    return {name: value for name, value in run.items() if name not in DROPPED and value not in (None, "")}


def merged(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], replaced: Sequence[str], everybody: Sequence[str]
) -> dict[str, Any]:
    """The new content, with the old runs of contenders that took no part this time.

    Args:
        replaced: names of the contenders that took part.
        everybody: names of all contenders of the workload; runs of others are dropped.
    """
    if old is None or old.get("form") != new["form"] or set(replaced) >= set(everybody):
        return dict(new)
    before = [run for run in old["runs"] if run["contender"] in everybody and run["contender"] not in replaced]
    comparisons = dict(old.get("comparisons", {}))
    for name, found in new.get("comparisons", {}).items():
        comparisons[name] = {**comparisons.get(name, {}), **found}
    return {**new, "runs": [*before, *new["runs"]], "comparisons": comparisons}
