"""A source that has another one read its rows: the other's code decides them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

READER = """
from finetooth_hooks import NoOptions, Source, hookimpl

@hookimpl
def ft_sources():
    yield Source(name="toy_reader", build=f"{__name__}:build")

def build(options: NoOptions, context):
    raise AssertionError("not built here")
"""


def test_code_of_a_source_that_is_relied_on(
    prepare: Callable[..., Any], write: Callable[..., Path], folder: Path
) -> None:
    write([f"row number {i}" for i in range(20)])
    reader = folder / "reader.py"
    reader.write_text(READER)
    plugin = folder / "preparation_plugin.py"
    plain = plugin.read_text()
    plugins = [str(plugin), str(reader)]

    def told() -> str:
        _, context = prepare(plugins=plugins)
        full_name = next(r.full_name for r in context.catalog.all("source") if r.entry.name == "toy_reader")
        assert full_name == "reader.py:toy_reader"
        return str(context.decisions["data.cache.train"].reason)

    assert "made now" in told() and "from the cache" in told()
    reader.write_text(f"{READER}# changed\n")
    assert "from the cache" in told()  # it has no part in the rows
    plugin.write_text(
        plain.replace(
            "class Plain(SourceBase):", 'class Plain(SourceBase):\n    relies_on = ("reader.py:toy_reader",)\n'
        )
    )
    assert "made now" in told() and "from the cache" in told()
    reader.write_text(f"{READER}# changed again\n")
    assert "made now" in told()
