"""Tables and consoles show texts as they are."""

from __future__ import annotations

import io

from finetooth_toolbox.cli.tables import plain_console, table


def test_a_console_replaces_no_text_by_an_emoji() -> None:
    """rich would write a tram for `:train:`, which stands in `folder:train: nulls ...` and in rows of users."""
    for terminal in (False, True):
        written = io.StringIO()
        console = plain_console(file=written, width=80, force_terminal=terminal, color_system=None)
        console.print("rows:train: a note :smile:", markup=False)
        console.print(table(console, "rows", ["name", "share"], [["a:train:b", ":100:"]]))
        assert all(said in written.getvalue() for said in ("rows:train: a note :smile:", "a:train:b", ":100:"))
