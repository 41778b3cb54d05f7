"""Questions about texts in a folder, and a tool that searches them (BM25, by SQLite's full-text index)."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Options
from finetooth_hooks.bases import EnvironmentBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.errors import DataError, RecipeError
from pydantic import Field

from finetooth_basicenvironments.tools import Tool, ToolEpisode, ToolRefused

_WORD = re.compile(r"\w+")


class SearchOptions(Options):
    """Options of `search`."""

    folder: str
    """Folder whose `*.txt` and `*.md` files are searched."""
    column: str = "answer"
    """Column with the right answer: a text, or a list of accepted answers."""
    results: int = Field(default=3, ge=1, le=20)
    """Most passages that a search returns."""
    passage: int = Field(default=400, ge=50)
    """Approximate length of a passage in characters: paragraphs are joined up to it, longer ones are cut."""


class Search(EnvironmentBase):
    """Reward 1 where the answer holds the right one, capitals and punctuation aside; else 0.

    Raises:
        RecipeError: the folder holds no text.
    """

    capabilities = frozenset({"seeded", "concurrent"})

    def __init__(self, options: SearchOptions) -> None:
        self._column, self._index = options.column, Index(Path(options.folder), options.passage)
        summary = "Searches a library of texts for words, and gives the passages that fit best."
        self._tool = Tool("search", summary, "query", lambda query: self._index.find(query, options.results))

    def episode(self, task: Task, seed: int) -> ToolEpisode:
        """Returns an episode that ends right if the answer contains one of the row's answers.

        Raises:
            DataError: the row has no answer to compare with.
        """
        expected = task.columns.get(self._column)
        wanted = [expected] if isinstance(expected, str) else list(expected or ())
        if not wanted or not all(isinstance(answer, str) and _words(answer) for answer in wanted):
            raise DataError(
                self._column, f"{expected!r} is not a text to compare with", action="give the row its answer"
            )
        right = [f" {_words(answer)} " for answer in wanted]
        return ToolEpisode(task, self._tool, lambda text: float(any(phrase in f" {_words(text)} " for phrase in right)))


class Index:
    """Passages of texts.

    Args:
        length: characters of a passage, about.
    """

    def __init__(self, folder: Path, length: int) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md") and path.is_file())
        if not paths:
            raise RecipeError(
                "method.environment.folder", f"{folder} holds no *.txt and no *.md", action="name a folder with texts"
            )
        self._lock = threading.Lock()  # one connection, asked by the threads of several episodes
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute("CREATE VIRTUAL TABLE passages USING fts5(file UNINDEXED, text, tokenize='porter')")
        for path in paths:
            text = path.read_text(encoding="utf-8", errors="replace")
            rows = [(path.relative_to(folder).as_posix(), passage) for passage in passages(text, length)]
            self._base.executemany("INSERT INTO passages VALUES (?, ?)", rows)

    def find(self, query: str, count: int) -> str:
        """The passages that fit best, best first.

        Raises:
            ToolRefused: the query has no word.
        """
        words = _WORD.findall(query)[:32]
        if not words:
            raise ToolRefused("the query has no words")
        match = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            rows = self._base.execute(
                "SELECT file, text FROM passages WHERE passages MATCH ? ORDER BY rank, rowid LIMIT ?", (match, count)
            ).fetchall()
        return "\n\n".join(f"[{file}] {text}" for file, text in rows) or "nothing found"


def passages(text: str, length: int) -> Iterator[str]:
    """A text in pieces of about `length` characters, cut between paragraphs where they are short enough."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(paragraph.split())
        if piece and len(piece) + len(words) > length:
            yield piece
            piece = ""
        piece = f"{piece} {words}".strip()
        while len(piece) > length:
            cut = piece.rfind(" ", 1, length)
            cut = length if cut < 0 else cut
            yield piece[:cut]
            piece = piece[cut:].strip()
    if piece:
        yield piece


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
