"""`ft data`: what it shows is what a run trains."""

from __future__ import annotations

import gc
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_core.cli import main
from rich.console import Console
from rich.text import Text

Recipe = Callable[..., dict[str, Any]]
Run = Callable[..., tuple[int, str, str]]


ROWS = (["Hello?", "Yes."], ["One\u00e9 \U0001f600?", "First.", "Two?", "Second."], ["Long?", "word " * 400])


def test_preview_shows_what_trains(ft: Run, written: Callable[..., Path]) -> None:
    path = written(*ROWS)
    code, out, _ = ft("data", "preview", path)
    assert code == 0
    assert all(f"[[{text}.\u27e8<|im_end|>\u27e9]]" in out for text in ("Yes", "First", "Second"))
    assert "\U0001f600" in out  # a character of several tokens is whole
    assert "left out: longer than train.max_length" in out


def test_preview_marks_what_trains_where_there_is_no_colour(
    ft: Run, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = ft("data", "preview", written(*ROWS[:1]))
    plain = Text.from_ansi(out).plain
    assert "[[Yes." in plain and "[[ ]] trains" in plain


def test_a_heading_alone_is_bold(ft: Run, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = ft("data", "preview", written(*ROWS[:1]))
    printed = Text.from_ansi(out)
    bold = {place: printed.get_style_at_offset(Console(), place).bold for place in range(len(printed))}
    heading, question, answer = (printed.plain.index(text) for text in ("row 1", "Hello?", "Yes."))
    assert (bold[heading], bool(bold[question]), bold[answer]) == (True, False, True)


STRANGE = "\u4f60\u597d \U0001f44b caf\u00e9"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "ascii"])
def test_preview_in_an_encoding_that_lacks_letters(
    ft: Run, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    path = written(["What?", STRANGE])
    _, whole, _ = ft("data", "preview", path, "--json")

    def printed(*arguments: str) -> str:
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
        assert main(["data", "preview", str(path), *arguments]) == 0
        return buffer.getvalue().decode(encoding)

    out = printed()
    assert f"[[{STRANGE.encode(encoding, 'backslashreplace').decode(encoding)}" in out
    assert "\\U0001f44b" in out and "< > a control token, not text" in out
    assert json.loads(printed("--json")) == json.loads(whole)


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


def test_what_a_format_leaves_out_is_shown_with_the_reason(
    ft: Run, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    answers = (("Four.", "Five."), ("Four.", "Four."), ("Four.", ""))
    rows = [{"prompt": "2+2?", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = recipe(method="dpo", data={"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    code, out, _ = ft("data", "preview", path, "--dropped", "--json")
    told = [(view["number"], Path(view["id"]).name, view["fate"], view["used"]) for view in json.loads(out)]
    assert code == 0 and told == [
        (2, "pairs.jsonl:2", "left out: chosen and rejected are the same", False),
        (3, "pairs.jsonl:3", "left out: rejected is empty", False),
    ]
    code, out, _ = ft("data", "preview", path, "--row", "3")
    assert code == 0 and "left out: rejected is empty" in out


def test_what_is_cut_is_shown_as_cut(ft: Run, written: Callable[..., Path]) -> None:
    path = written(*ROWS, train={"max_length": 64, "excess_length": "truncate"})
    _, out, _ = ft("data", "preview", path, "--row", "3", "--json")
    (view,) = json.loads(out)
    assert view["fate"] == "cut to 64 tokens" and view["used"]
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
        (["--row", "9"], "no row is '9'"),
        (["--row", "1", "--longest"], "each choose rows"),
        (["--split", "eval"], "data.eval"),
    ],
)
def test_bad_requests_are_one_line(ft: Run, written: Callable[..., Path], arguments: list[str], problem: str) -> None:
    code, out, err = ft("data", "preview", written(*ROWS), *arguments)
    assert code == 2 and not out and problem in err and len(err.strip().splitlines()) == 1


def test_prepare_says_when_nothing_is_kept(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    code, out, _ = ft("data", "prepare", written(*ROWS))
    assert code == 0 and f"data.train: nothing is kept: {len(ROWS)} rows are made again in a moment" in out
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "Once upon a time."}))
    streamed = {"method": {"name": "pretrain", "streaming": True}, "data": {"train": str(tmp_path / "texts.jsonl")}}
    code, out, _ = ft("data", "prepare", written(*ROWS, **streamed, train={"max_steps": 2}))
    assert code == 0 and "data.train: nothing is kept: its rows are read and tokenised while training" in out
    assert not json.loads(ft("data", "cache", "list", "--json")[1])


@pytest.mark.slow
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
    assert train["roles"] == {"user": 0, "assistant": report["trained_tokens"]}  # not the row that is left out
    assert 0 <= train["budgeted"] <= train["padded"] < 1
    assert train["laid_out"] == 0.0 < train["padded"] and "0.0 % as it will be laid out" in text  # the stream decoder
    assert found["steps"] == 1


def test_check_names_the_broken_row(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(*ROWS)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": null}]}\n')
    code, out, err = ft("data", "check", path)
    assert code == 2 and not out and "rows.jsonl:4" in err and "null" in err


BROKEN = (
    '{"messages": [{"role": "user", "content": null}]}',
    "{not json",
    '{"messages": [{"role": "user", "content": "Nobody answers."}]}',
)


@pytest.fixture
def broken(written: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe over good rows (1 and 3) among broken ones, the same rows held out."""
    path = written(*ROWS[:2])
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([rows[0], BROKEN[0], rows[1], *BROKEN[1:]]) + "\n")
    (tmp_path / "good.jsonl").write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("split", ["train", "eval"])
def test_good_rows_are_shown_beside_broken_ones(ft: Run, broken: Path, tmp_path: Path, split: str) -> None:
    held_out = f"data.eval={tmp_path / 'rows.jsonl'}"
    code, out, err = ft("data", "preview", broken, held_out, "--split", split)
    assert code == 2 and "rows.jsonl" in err and len(err.strip().splitlines()) == 1
    assert "[[Yes." in out and "[[Second." in out and "has a column 'messages'" in out
    assert "3 rows cannot be used" in out
    for number, problem in ((2, "is null"), (4, "not JSON"), (5, "nothing to train on")):
        assert f"row {number}  " in out and problem in out


def test_held_out_rows_are_shown_where_training_rows_are_broken(ft: Run, broken: Path, tmp_path: Path) -> None:
    code, out, err = ft("data", "preview", broken, f"data.eval={tmp_path / 'good.jsonl'}", "--split", "eval")
    assert code == 2 and "rows.jsonl" in err and "[[Yes." in out and "cannot be used" not in out


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--rows", "2"], [1, 3, 2, 4, 5]),
        (["--row", "3"], [3, 2, 4, 5]),
        (["--row", "2"], [2, 4, 5]),
        (["--longest", "--rows", "1"], [3, 2, 4, 5]),
        (["--dropped"], [2, 4, 5]),
    ],
)
def test_broken_rows_are_named_whatever_is_asked_for(
    ft: Run, broken: Path, arguments: list[str], shown: list[int]
) -> None:
    code, out, _ = ft("data", "preview", broken, "--json", *arguments)
    views = json.loads(out)
    assert code == 2 and [view["number"] for view in views] == shown
    assert [view["number"] for view in views if view["broken"]] == [n for n in shown if n in (2, 4, 5)]


def test_nothing_is_shown_of_a_file_that_is_not_there(ft: Run, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(*ROWS)
    (tmp_path / "rows.jsonl").unlink()
    code, out, err = ft("data", "preview", path)
    assert code == 2 and not out and "rows.jsonl" in err


def test_a_row_too_long_where_that_is_an_error_is_shown(
    ft: Run, written: Callable[..., Path], tiny_smollm2: Path
) -> None:
    path = written(*ROWS, model=str(tiny_smollm2), train={"max_length": 64, "excess_length": "raise"})
    code, out, err = ft("data", "preview", path)
    assert code == 2 and "more than train.max_length=64" in err and "[[Yes." in out
    assert "1 row cannot be used" in out and "row 3  " in out


def test_targets_are_those_of_the_data(ft: Run, written: Callable[..., Path], tiny_smollm2: Path) -> None:
    path = written(*ROWS[:2], model=str(tiny_smollm2))
    _, out, _ = ft("data", "preview", path, "--json", "--targets")
    data = finetooth.session(path).job.method._data
    for view, datum in zip(json.loads(out), data, strict=True):
        found = view["targets"]
        assert [target["position"] for target in found] == list(range(len(datum)))
        assert [target["id"] for target in found] == datum.tokens.tolist()
        assert [target["target"] for target in found] == datum.targets.tolist()
        assert [bool(target["weight"]) for target in found] == datum.mask.tolist()
    _, out, _ = ft("data", "preview", path, "--row", "1", "--targets")
    assert "Targets of row 1" in out and "'Yes'" in out


def test_the_page_says_what_each_token_predicts(
    ft: Run, written: Callable[..., Path], tiny_smollm2: Path, tmp_path: Path
) -> None:
    path = written(["Say <|im_end|>.", "Yes."], model=str(tiny_smollm2))
    ft("data", "preview", path, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    titles = re.findall(r'<span class="([^"]*)" title="([^"]*)">([^<]*)</span>', page)
    (answer,) = [(kind, title) for kind, title, text in titles if text == "Yes"]
    assert answer[0] == "t" and re.search(
        r"weight 1, &#x27;Yes&#x27;&#10;predicts id \d+, weight 1, &#x27;.&#x27;", answer[1]
    )
    ends = [kind.split() for kind, _, text in titles if text == "&lt;|im_end|&gt;"]
    assert ends.count(["t", "s"]) == 1 and all("s" in kind for kind in ends)  # the question's is text in pieces
    assert "has a column" in page
