"""What a command is at, as a bar that moves: for as long as nothing else shows that it works."""

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
"""Takes another text, and the share that is done where that is known: then the time that is left is shown too."""

_shown: list[Progress | None] = []
"""The bars that are drawn; None last: something else has the terminal."""
_shares: list[Callable[[float], None]] = []
"""Moves each of them."""


@contextmanager
def working(what: str) -> Iterator[Show]:
    """Say what is done and for how long already, in a line at the bottom of the terminal that is gone afterwards.

    Inside another one it stands below that. Nothing is shown where stderr is not a terminal, in a thread, and by ranks
    after the first.

    Args:
        what: such as `loading the weights`.
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
    """Show how much is done of what the innermost bar says, for code that does not know who waits for it.

    Args:
        share: from 0 to 1.
    """
    if _shares and _shown[-1] is not None and threading.current_thread() is threading.main_thread():
        _shares[-1](share)


def time_left(began: float, share: float | None) -> str:
    """The end of a line about work that began then (`time.monotonic`): `, 25%, 1:30 left`; empty without a share."""
    if not share:
        return ""
    minutes, seconds = divmod(round((time.monotonic() - began) * (1 - share) / share), 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    return f", {share:.0%}, {clock} left"


@contextmanager
def lend_terminal() -> Iterator[None]:
    """Show nothing inside, since something else draws there."""
    _shown.append(None)
    try:
        yield
    finally:
        _shown.pop()
