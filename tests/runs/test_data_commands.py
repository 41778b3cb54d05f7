"""`ft data`: what it shows is what a run trains."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_core.cli import main

Recipe = Callable[..., dict[str, Any]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command; its exit code, and what it printed."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def written(recipe: Recipe, tmp_path: Path) -> Callable[..., Path]:
    """A recipe file over a few conversations."""

    def write(*rows: list[str], **sections: Any) -> Path:
        roles = ("user", "assistant")
        lines = [
            json.dumps({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]})
            for texts in rows
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        sections.setdefault("data", {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(**sections)))
        return tmp_path / "recipe.yaml"

    return write


ROWS = (["Hello?", "Yes."], ["One\u00e9 \U0001f600?", "First.", "Two?", "Second."], ["Long?", "word " * 400])


def test_preview_shows_what_trains(ft: Run, written: Callable[..., Path]) -> None:
    path = written(*ROWS)
    code, out, _ = ft("data", "preview", path)
    assert code == 0
    assert "[[Yes.<|im_end|>]]" in out and "[[First.<|im_end|>]]" in out and "[[Second.<|im_end|>]]" in out
    assert "\U0001f600" in out  # a character of several tokens is whole
    assert "left out: longer than train.max_length" in out


def test_preview_agrees_with_the_data_of_a_run(ft: Run, written: Callable[..., Path]) -> None:
    path = written(*ROWS[:2])
    _, out, _ = ft("data", "preview", path, "--json")
    session = finetooth.session(path)
    data = session.job.method._data
    shown = json.loads(out)
    assert len(shown) == len(data) == 2
    for view, datum in zip(shown, data, strict=True):
        ids = [id_ for piece in view["pieces"] for id_ in piece["ids"]]
        weights = [weight for piece in view["pieces"] for weight in piece["weights"]]
        assert ids == [*datum.tokens.tolist(), int(datum.targets[-1])]
        assert [bool(weight) for weight in weights[1:]] == datum.mask.tolist()


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--row", "2"], ["rows.jsonl:2"]),
        (["--rows", "1"], ["rows.jsonl:1"]),
        (["--longest", "--rows", "2"], ["rows.jsonl:3", "rows.jsonl:2"]),
        (["--dropped"], ["rows.jsonl:3"]),
    ],
)
def test_preview_chooses_rows(ft: Run, written: Callable[..., Path], arguments: list[str], ids: list[str]) -> None:
    code, out, _ = ft("data", "preview", written(*ROWS), "--json", *arguments)
    assert code == 0
    assert [Path(view["id"]).name for view in json.loads(out)] == ids


def test_what_is_cut_is_shown_as_cut(ft: Run, written: Callable[..., Path]) -> None:
    path = written(*ROWS, train={"max_length": 64, "excess_length": "truncate"})
    _, out, _ = ft("data", "preview", path, "--row", "3", "--json")
    (view,) = json.loads(out)
    assert view["fate"] == "cut to 64 positions" and view["used"]
    assert sum(len(piece["ids"]) for piece in view["pieces"] if not piece["cut"]) == 65


class Page(HTMLParser):
    """The text of a page's rows, and what it asks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.inside, self.links = "", False, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or tag == "pre"
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        assert tag != "script"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def test_the_page_holds_the_text_and_needs_nothing(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(["<b>&amp;</b>?", "Yes & no."])
    code, _, _ = ft("data", "preview", path, "--html", tmp_path / "page.html")
    page = Page()
    page.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert code == 0 and not page.links
    assert "<b>&amp;</b>?" in page.text and "Yes & no.<|im_end|>" in page.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--row", "9"], "there is no row '9'"),
        (["--row", "1", "--longest"], "each choose rows"),
        (["--split", "eval"], "data.eval"),
    ],
)
def test_bad_requests_are_one_line(ft: Run, written: Callable[..., Path], arguments: list[str], problem: str) -> None:
    code, out, err = ft("data", "preview", written(*ROWS), *arguments)
    assert code == 2 and not out and problem in err and len(err.strip().splitlines()) == 1


def test_prepare_says_when_nothing_is_kept(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    code, out, _ = ft("data", "prepare", written(*ROWS))
    assert code == 0 and f"data.train: nothing is kept: {len(ROWS)} rows are made anew in a moment" in out
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "Once upon a time."}))
    streamed = {"method": {"name": "pretrain", "streaming": True}, "data": {"train": str(tmp_path / "texts.jsonl")}}
    code, out, _ = ft("data", "prepare", written(*ROWS, **streamed, train={"max_steps": 2}))
    assert code == 0 and "data.train: nothing is kept: its rows are read and tokenised while training" in out
    assert not json.loads(ft("data", "cache", "list", "--json")[1])


def test_prepare_keeps_what_a_run_finds(ft: Run, written: Callable[..., Path]) -> None:
    many = {"name": "tasks", "task": "family", "count": 2500, "seed": 5}
    path = written(*ROWS, data={"train": many, "renderer": "chatml", "workers": 0})
    code, out, _ = ft("data", "prepare", path)
    assert code == 0 and "data.cache.train" in out and "made now and kept" in out
    _, out, _ = ft("data", "prepare", path)
    assert "from the cache" in out
    _, out, _ = ft("data", "cache", "list", "--json")
    (entry,) = json.loads(out)
    assert entry["rows"] == 2500
    _, out, _ = ft("data", "cache", "list")
    assert entry["key"][:12] in out and "2,500" in out
    code, out, _ = ft("data", "cache", "prune", "--keep", "1GB")
    assert code == 0 and "removed 0" in out
    gc.collect()  # sessions of this process hold what they use; a command's process ends
    code, out, _ = ft("data", "cache", "prune", "--all")
    assert code == 0 and "removed 1" in out
    assert "nothing is kept" in ft("data", "cache", "list")[1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "one of --keep, --older-than and --all"),
        (["--all", "--keep", "1GB"], "one of --keep, --older-than and --all"),
        (["--keep", "much"], "write it as 5GB"),
        (["--older-than", "7y"], "write it as 7d"),
    ],
)
def test_prune_says_what_it_needs(ft: Run, arguments: list[str], problem: str) -> None:
    code, _, err = ft("data", "cache", "prune", *arguments)
    assert code == 2 and problem in err


def test_check_counts_what_is_there(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(*ROWS, ROWS[0], ROWS[0])
    (tmp_path / "held.jsonl").write_text((tmp_path / "rows.jsonl").read_text().splitlines()[1] + "\n")
    given = yaml.safe_load(path.read_text())
    given["data"]["eval"] = str(tmp_path / "held.jsonl")
    path.write_text(yaml.safe_dump(given))
    code, out, _ = ft("data", "check", path)
    assert code == 0
    text = out
    assert "2 rows of train repeat an earlier one" in out and "rows.jsonl:4" in out
    assert "1 row of eval is in train too" in out and "1 left out: longer than train.max_length" in out
    _, out, _ = ft("data", "check", path, "--json")
    found = json.loads(out)
    (train,) = [one for one in found["surveys"] if one["split"] == "train"]
    assert train["rows"] == 4 and sum(count for _, _, count in train["histogram"]) == 4
    (report,) = [one for one in found["reports"] if one["split"] == "train"]
    # all rows are looked at for roles, the one that is too long as well
    assert train["roles"]["user"] == 0 and train["roles"]["assistant"] > report["trained_tokens"]
    assert train["looked_at"] == 5 and 0 <= train["budgeted"] <= train["padded"] < 1
    assert train["laid_out"] == 0.0 < train["padded"] and "0.0 % as it will be laid out" in text  # the stream decoder
    assert found["steps"] == 1


def test_check_names_the_broken_row(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(*ROWS)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": null}]}\n')
    code, out, err = ft("data", "check", path)
    assert code == 2 and not out and "rows.jsonl:4" in err and "null" in err
