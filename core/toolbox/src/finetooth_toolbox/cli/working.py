"""A moving bar with the present work of a command, while nothing else shows progress."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Show = Callable[[str, float | None], None]
"""Sets another text, and the finished share if known; with a share, the bar also shows the remaining time."""

_shown: list[Progress | None] = []
"""The drawn bars; a None at the end means that other output has the terminal."""
_shares: list[Callable[[float], None]] = []
"""Functions that set the share of each bar."""


@contextmanager
def working(what: str) -> Iterator[Show]:
    """Show the present work and its duration in a temporary line at the bottom of the terminal.

    A nested line is below the outer one. Nothing is shown if stderr is not a terminal, in a thread, and by ranks after
    the first.

    Args:
        what: the work, such as `loading the weights`.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or _shown[-1:] == [None] or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield lambda text, share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from finetooth_toolbox.cli.tables import plain_console

    columns = BarColumn(bar_width=16), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    bar = _shown[-1] if _shown else None
    own = Progress(
        *columns,
        console=plain_console(stderr=True),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
    )
    bar = bar or own
    task, began = bar.add_task(what, total=None), time.monotonic()

    def show(text: str, share: float | None) -> None:
        bar.update(task, description=text + time_left(began, share), total=share and 1.0, completed=share or 0.0)

    _shown.append(bar)
    _shares.append(lambda share: show(what, share))
    try:
        if bar is own:
            bar.start()
        yield show
    finally:
        _shown.pop()
        _shares.pop()
        bar.remove_task(task)
        if bar is own:
            bar.stop()


def show_share(share: float) -> None:
    """Set the finished share of the innermost bar, from code that does not have the bar.

    Args:
        share: from 0 to 1.
    """
    if _shares and _shown[-1] is not None and threading.current_thread() is threading.main_thread():
        _shares[-1](share)


def time_left(began: float, share: float | None) -> str:
    """The end of a line about work that began at `began` (`time.monotonic`): `, 25%, 1:30 left`; empty without a
    share."""
    if not share:
        return ""
    minutes, seconds = divmod(round((time.monotonic() - began) * (1 - share) / share), 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    return f", {share:.0%}, {clock} left"


@contextmanager
def lend_terminal() -> Iterator[None]:
    """Hide the bars inside the context, while other output uses the terminal."""
    _shown.append(None)
    try:
        yield
    finally:
        _shown.pop()
