"""The screen of `ft watch`, driven by textual's own pilot."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_toolbox.files.locks import lock_folder
from finetooth_watch.command import command

pytest.importorskip("textual", reason="textual is not installed")

from finetooth_watch.screen import WatchApp
from textual.widgets import DataTable, ProgressBar, Sparkline, Static

HOSTILE = "[red]x[/red]\x1b[2J"


def append(folder, *lines):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def step(number, loss):
    made = {"event": "step", "step": number, "loss": loss, "grad_norm": 0.5, "seconds": 2.0, "metrics": {"kl": 0.25}}
    return made if loss is not None else {**made, "not_finite": ["loss"]}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "mine"
    made.mkdir()
    (made / "run.json").write_text('{"id": "1"}')
    (made / "recipe.yaml").write_text("model: toy\n")
    (made / "plan.json").write_text(json.dumps({"recipe": {"model": "toy"}, "picks": {}, "total_steps": 4}))
    sample = {"id": "1", "prompt": HOSTILE, "answer": "yes", "expected": "no", "score": 0.0}
    evaluation = {"event": "evaluation", "step": 0, "name": "loss", "metrics": {"loss": 3.0}, "samples": [sample]}
    append(made, evaluation, step(1, 2.0))
    return made


def shown(app, name):
    return str(app.query_one(f"#{name}", Static).content)


def cells(app, name):
    table = app.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def test_it_follows_a_run_until_it_has_ended(folder):
    async def watched():
        app = WatchApp(folder, every=3600.0)  # looks are asked for here, none comes by the clock
        async with app.run_test(size=(80, 24)) as pilot:
            with lock_folder(folder):
                app.look()
                assert shown(app, "title") == "mine  running"
                assert shown(app, "pace").startswith("step 1 of 4 - 2 s - about 6 s left")
                assert ["loss", "2"] in cells(app, "figures") and ["kl", "0.25"] in cells(app, "figures")
                assert cells(app, "evaluations") == [["0", "eval/loss", "3"]]
                append(folder, step(2, 1.0))
                app.look()
                assert list(app.query_one(Sparkline).data) == [2.0, 1.0]
                assert app.query_one(ProgressBar).percentage == 0.5
            append(folder, step(3, None))
            (folder / "result.json").write_text('{"status": "failed", "reason": "a loss is NaN", "steps": 3}')
            app.look()
            assert shown(app, "title") == "mine  failed: a loss is NaN"
            assert shown(app, "advice").startswith("step 3: loss is not finite; gradients were calm before")
            assert ["loss", "not finite"] in cells(app, "figures")
            assert "[red]x[/red]\\x1b[2J" in shown(app, "answer_text")
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(watched())


def test_it_holds_still_and_fits_forty_columns(folder):
    async def watched():
        app = WatchApp(folder, every=3600.0)
        async with app.run_test(size=(40, 12)) as pilot:
            await pilot.pause()
            for table in app.query(DataTable):  # no value is outside of what is seen
                assert 0 < table.virtual_size.width <= table.size.width
            await pilot.press("space")
            append(folder, step(2, 1.0))
            app.look()
            assert list(app.query_one(Sparkline).data) == [2.0]
            assert shown(app, "pace") == "held still: space continues"
            await pilot.press("space")
            assert shown(app, "pace").startswith("step 2")
            assert list(app.query_one(Sparkline).data) == [2.0, 1.0]
            await pilot.press("ctrl+c")
        assert app.return_code == 0

    asyncio.run(watched())


def test_without_a_terminal_it_says_what_prints_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, problem in (
        ([str(folder)], "needs a terminal .ft runs show"),
        (["x"], "x: no run has this name"),
        ([], "no run in runs"),
    ):
        with pytest.raises(UserError, match=problem):
            CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)
