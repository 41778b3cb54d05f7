"""What the pages tell a reader to type does what they say, on a tiny random model."""

import re

import pytest


@pytest.mark.slow
@pytest.mark.each
def test_commands_run(tested_page, blocks, shell):
    """The blocks of a page, in order, in one folder: files are written, commands run, outputs compared."""
    printed = ""
    for block in blocks(tested_page):
        kind, _, argument = block.marker.partition(":")
        if kind == "file":
            file = shell.folder / argument.strip()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif kind == "test":
            expected = int(argument.split()[-1]) if argument else 0
            code, printed = shell.run(block.text)
            assert code == expected, f"{block.page}:\n{block.text}\nexit code {code}\n{printed}"
            assert "Traceback" not in printed
        elif kind == "output":
            for line in block.text.splitlines():
                assert line in printed, f"{block.page}: {line!r} is not in\n{printed}"


def test_every_command_is_run_or_says_why_not(page, blocks):
    for block in blocks(page):
        if block.language in ("sh", "bash", "console", "shell"):
            assert re.match(r"test(: exit \d+)?$|not run: \w", block.marker), (
                f"{block.page}: put <!-- test --> or <!-- not run: WHY --> above\n{block.text}"
            )


def test_markers_are_known(page, blocks):
    for block in blocks(page):
        assert re.match(r"(test|output( of the real model)?|file: \S+|not run: .+|test: exit \d+)?$", block.marker), (
            block.marker
        )
