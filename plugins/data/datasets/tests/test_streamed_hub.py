"""Rows of a hub dataset as they come: the real clients against a stand-in on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from finetooth_datasets.builder import DatasetsOptions
from finetooth_datasets.source import DatasetsSource
from finetooth_hooks import DataError
from finetooth_kit.hub_stand_in import HubStandIn, serving

ROWS = 6_000
CHILD = """
import json, sys
from itertools import islice
from finetooth_datasets.builder import DatasetsOptions
from finetooth_datasets.source import DatasetsSource
rows = DatasetsSource(DatasetsOptions(path="org/rows", streaming=True)).rows()
first = next(rows)
print("first", flush=True)
sys.stdin.readline()
more = list(islice(rows, 2))
ids = [first.id, *(row.id for row in more)]
rest = DatasetsSource(DatasetsOptions(path="org/rows", streaming=True)).rows()
at = next(islice(rest, 7_000, None))
print(json.dumps({"ids": ids, "at": at.values["text"][:13]}), flush=True)
"""


def corpus() -> dict[str, bytes]:
    """Two files of 24 MB, many times what a client reads ahead."""
    made = {}
    for file in range(2):
        lines = (json.dumps({"text": f"file {file} row {row} {'x' * 4_000}"}) for row in range(ROWS))
        made[f"data/train-{file:05d}.jsonl"] = "\n".join(lines).encode()
    return made


@pytest.mark.slow
def test_rows_begin_before_the_files_are_whole(tmp_path: Path) -> None:
    """A process of its own, since the clients take the hub's address when they are imported."""
    hub = HubStandIn(corpus())
    whole = sum(map(len, hub.files.values()))
    with serving(hub):
        environment = {"PATH": "", "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        with subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            assert child.stdout.readline() == "first\n"
            sent = hub.sent
            child.stdin.write("\n")
            child.stdin.flush()
            told = json.loads(child.stdout.readline())
    assert 0 < sent < 0.8 * whole
    assert not any("train-00001" in asked for asked in hub.asked[: hub.asked.index(_first_file(hub)) + 1])
    assert told["ids"] == [f"org/rows:train:{row}" for row in range(3)]
    assert told["at"] == "file 1 row 10"  # row 7,000 is the 1,000th of the second file
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 1_000_000  # nothing was kept


def _first_file(hub: HubStandIn) -> str:
    return next(asked for asked in hub.asked if asked.endswith(".jsonl"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"path": "rows.json"}, "is for a dataset of the hub"), ({"path": "org/rows", "split": "train[:5]"}, "slice")],
)
def test_what_cannot_be_streamed_is_said(options: dict[str, Any], said: str) -> None:
    source = DatasetsSource(DatasetsOptions(**options, streaming=True))
    assert source.identity() is None
    with pytest.raises(DataError, match=said):
        list(islice(source.rows(), 1))
