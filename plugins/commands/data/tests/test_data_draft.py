"""`ft data draft` against a server that answers as it is told: what becomes a row, and what is said of its making."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_data.draft import Passage, drafted, pieces
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("finetooth_text")

Says = Callable[[str], str]


def sensible(prompt: str) -> str:
    """A model that asks about the first word of a text, and denies what it says of shoes."""
    word = prompt.split("Read this text.\n\n")[1].split()[0]
    if "Write one question" in prompt:
        return f"Question: What is said of {word}?"
    if "Reply with yes or no" in prompt:
        return "No." if "shoes" in prompt else "**Yes**"
    return f"That {word} is there."


@pytest.fixture
def serve() -> Iterator[Callable[[Says], str]]:
    """Serves a model; returns its address."""
    servers = []

    def begin(says: Says) -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content = {"choices": [{"message": {"content": says(asked["messages"][-1]["content"])}}]}
                self.send_response(200 if asked["model"] == "m" else 404)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *arguments: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def draft(*words: object) -> int:
    try:
        return int(main(["data", "draft", *map(str, words)]) or 0)
    except SystemExit as end:
        return int(end.code or 0)


def test_rows_say_that_they_are_made_and_of_what(
    tmp_path: Path, serve: Callable[[Says], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.md").write_text("# Help\n\nOpening hours are nine to six.\n\nAll shoes are tried on.\n")
    out = tmp_path / "rows.jsonl"
    address = serve(sensible)
    words = (tmp_path / "a.md", out, "--server", address, "--model", "m", "--words", 20, "--system", "You are Lumi.")
    assert draft(*words, "--unjudged") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 1 and "1 row drafted" in capsys.readouterr().out
    assert [one["role"] for one in rows[0]["messages"]] == ["system", "user", "assistant"]
    assert rows[0]["messages"][1]["content"] == "What is said of #?"
    assert rows[0]["made"] == {"by": "m", "judge": None, "from": f"{(tmp_path / 'a.md').as_posix()}#1"}
    out.unlink()
    assert draft(*words) == 2, "the judge refuses what is said of shoes"
    assert "no row was drafted (1 refused by the judge)" in capsys.readouterr().err and not out.exists()


def test_the_column_of_the_texts_can_be_named(
    tmp_path: Path, serve: Callable[[Says], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("number,body,more\n1,Opening hours are nine to six.,2\n")
    words = (tmp_path / "a.csv", tmp_path / "o.jsonl", "--server", serve(sensible), "--model", "m", "--unjudged")
    assert draft(*words) == 2 and "set data.format" in capsys.readouterr().err
    assert draft(*words, "--format", '{"name": "text", "column": "body"}') == 0
    assert "1 row drafted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rows.csv"], "rows are written as .jsonl"),
        (["rows.jsonl", "--judge", "x", "--unjudged"], "exclude each other"),
        (["rows.jsonl", "--server", "here"], "'here' is not an address (begin with http://)"),
        (["rows.jsonl", "--server", "http://127.0.0.1:9/v1"], "no server answers at http://127.0.0.1:9/v1: Conn"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("One text.")
    assert draft("a.txt", *words, "--model", "m") == 2
    assert said in capsys.readouterr().err


def test_rows_that_are_no_texts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert draft(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--model", "m", "--server", "http://127.0.0.1:9/v1") == 2
    assert "not a text to draft from (name documents)" in capsys.readouterr().err


def test_questions_that_were_asked_and_replies_without_one_are_left_out() -> None:
    passages = [Passage(f"a#{number}", f"text {number}") for number in range(3)]
    replies = {0: "Is it open today?", 1: "is it open TODAY?", 2: "I cannot say."}

    def ask(prompts: Any, temperature: float, tokens: int, seed: int) -> list[str]:
        if temperature:
            return [replies[int(prompt.split("text ")[1][0])] for prompt in prompts]
        return ["Yes." for _ in prompts]

    rows, out = drafted(passages, ask, ask, most=9, each=1, seed=0)
    assert [(passage.id, question, answer) for passage, question, answer in rows] == [
        ("a#0", "Is it open today?", "Yes.")
    ]
    assert out == {"asked before": 1, "without a question": 1}


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(20, 40))
def test_pieces_keep_every_word_and_stay_short(lengths: list[int], words: int) -> None:
    """Sentences of five words: no piece is longer than asked for, and nothing is lost."""
    text = "\n\n".join(" ".join(["a b c d e."] * length) for length in lengths)
    found = list(pieces(text, words))
    assert " ".join(found).split() == text.split()
    assert all(len(piece.split()) <= words for piece in found)
