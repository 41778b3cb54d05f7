"""The screen of `ft watch`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from finetooth_saving.runs.recorded import METRICS, read_run
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, ProgressBar, Sparkline, Static

from finetooth_watch.looks import Look, look

WATCHED = ("result.json", "plan.json", METRICS, ".lock")


class WatchApp(App[None]):
    """Looks at the folder of a run again and again.

    Args:
        folder: of the run.
        every: seconds between two looks.
    """

    CSS = """
    #title { text-style: bold; height: auto; }
    #pace { height: auto; }
    #advice { height: auto; max-height: 6; color: $warning; }
    #progress { height: 1; }
    #losses { height: 5; margin: 1 0; }
    #tables { height: 1fr; }
    #figures, #evaluations { width: 1fr; height: 100%; }
    #answers { height: 1fr; border-top: solid $primary; }
    .-narrow #losses { height: 3; margin: 0; }
    .-narrow #tables { layout: vertical; height: 2fr; }
    .-narrow #figures, .-narrow #evaluations { width: 100%; height: 1fr; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-wide")]  # noqa: RUF012 - not a class variable for mypy
    """In fewer columns the tables stand below each other: side by side, neither had room for its values."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Leave"),
        Binding("ctrl+c", "quit", show=False),
        Binding("space", "hold", "Hold still"),
    ]

    def __init__(self, folder: Path, every: float = 1.0) -> None:
        super().__init__()
        self._folder, self._every = folder, every
        self._seen: tuple[object, ...] = ()
        self._held = False

    def compose(self) -> ComposeResult:
        yield Static(id="title", markup=False)
        yield Static(id="pace", markup=False)
        yield Static(id="advice", markup=False)
        yield ProgressBar(id="progress", total=1.0, show_eta=False)
        yield Sparkline([], id="losses")
        with Horizontal(id="tables"):
            yield DataTable(id="figures", cursor_type="none", show_header=False)
            yield DataTable(id="evaluations", cursor_type="none")
        with VerticalScroll(id="answers"):
            yield Static(id="answer_text", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Look now, and from now on again and again."""
        self.query_one("#figures", DataTable).add_columns("figure", "value")
        self.query_one("#evaluations", DataTable).add_columns("step", "metric", "value")
        self.look()
        self.set_interval(self._every, self.look)

    def action_hold(self) -> None:
        """Freeze the picture, or let it move again."""
        self._held, self._seen = not self._held, ()
        self.query_one("#pace", Static).update("held still: space continues")
        self.look()

    def look(self) -> None:
        """Show the run as it is now, if something has changed."""
        if self._held:
            return
        seen = tuple(_stamp(self._folder / name) for name in WATCHED)
        read = read_run(self._folder)
        if (seen, read.status) != self._seen:
            self._seen = (seen, read.status)
            self.show(look(read))

    def show(self, look: Look) -> None:
        """Put a look on the screen."""
        self.query_one("#title", Static).update(Text(look.title))
        self.query_one("#pace", Static).update(Text(look.pace))
        self.query_one("#advice", Static).update(Text(look.advice))
        bar = self.query_one("#progress", ProgressBar)
        bar.update(total=1.0 if look.progress is not None else None, progress=look.progress or 0.0)
        self.query_one("#losses", Sparkline).data = list(look.losses)
        for name, rows in (("figures", look.figures), ("evaluations", look.evaluations[::-1])):
            table = self.query_one(f"#{name}", DataTable)
            table.clear()
            for row in rows:
                table.add_row(*map(Text, row))
        blocks = [
            f"? {prompt}\n> {answer}" + (f"\n= {right}" if right else "") for prompt, answer, right in look.answers
        ]
        self.query_one("#answer_text", Static).update(Text("\n\n".join(blocks)))


def _stamp(path: Path) -> tuple[int, int]:
    """Changes whenever a file does."""
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return 0, 0
