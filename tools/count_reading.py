"""Count what a stranger reads who writes a plugin, and write the table into docs/guides/architecture.md.

    python tools/count_reading.py [--check]

`READINGS` lists, for five plugins, the files to read from the first line to the last: the guide, the contract of the
kind, what the contract is written in, and an example. A hook's page or a type's may be looked up in place of a file;
what is only called, as an example calls it, is not read. Lines are counted as `wc -l` does.

`--check` changes nothing. It fails if a file is gone, if a list is longer than its bound, or if the table is more than
a twentieth away from what is counted.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guides/architecture.md"
BEGIN, END = "<!-- tools/count_reading.py -->", "<!-- end -->"
SLACK = 0.05
"""By how much the table may be off: a line more in a docstring is no reason to draw it again."""


@dataclass(frozen=True)
class Reading:
    """What one plugin takes to be read.

    Attributes:
        plugin: what is to be written.
        guide: name of the page in docs/guides to begin with.
        most_lines, most_files: bounds, half of what was read before the rooms were opened; of a loss, as much.
        files: below the root, in the order in which they are best read.
    """

    plugin: str
    guide: str
    most_lines: int
    most_files: int
    files: tuple[str, ...]

    def lines(self) -> int:
        """Lines of all files.

        Raises:
            FileNotFoundError: one is gone.
        """
        return sum((ROOT / file).read_bytes().count(b"\n") for file in self.files)


def _of(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


GUIDES, HOOKS, STEPS = "docs/guides", "hooks/contract/src/finetooth_hooks", "kernels/steps/src/finetooth_steps"
TOY, TORCH = "tests/engine/plugins/toy_numpy", "plugins/backends/torch/src/finetooth_torch"
LORA, CROSS = "plugins/adapters/lora/src/finetooth_lora", "plugins/losses/crossentropy/src/finetooth_crossentropy"
BATCHED = "plugins/shared/methods/src/finetooth_methods"

READINGS = (
    Reading(
        "a loss",
        "write-a-plugin",
        341,
        4,
        (*_of(GUIDES, "write-a-plugin.md"), *_of(HOOKS, "compute/losses.py"), *_of(CROSS, "plugin.py", "loss.py")),
    ),
    Reading(
        "a method that learns from its own answers (GRPO)",
        "write-a-method",
        1408,
        7,
        (
            *_of(GUIDES, "write-a-method.md", "method/grpo.py"),
            *_of(HOOKS, "methods.py", "engine.py", "data/datum.py", "reports.py"),
            *_of(BATCHED, "batched.py"),
        ),
    ),
    Reading(
        "a base in 4 bits under LoRA",
        "write-a-quantizer",
        2500,
        11,
        (
            *_of(GUIDES, "write-a-quantizer.md", "quantizer/int8.py", "write-a-plugin.md"),
            *_of(HOOKS, "compute/quantizers.py", "models.py"),
            "plugins/shared/torchshared/src/finetooth_torchshared/quantised.py",
            *_of(LORA, "adapter.py", "layers.py"),
            *_of("plugins/data/transformers/src/finetooth_transformers", "loader.py"),
            *_of(TORCH, "planning/memory.py"),
            *_of("hooks/kit/src/finetooth_kit", "entries/quantizer.py"),
        ),
    ),
    Reading(
        "a backend for another framework (MLX)",
        "write-a-backend",
        3260,
        15,
        (
            *_of(GUIDES, "write-a-backend.md"),
            *_of(HOOKS, "engine.py", "data/datum.py", "compute/losses.py", "sampling.py"),
            *_of(HOOKS, "compute/backends.py", "models.py", "compute/adapters.py", "compute/updates.py"),
            *_of(STEPS, "micro_batches.py", "totals.py"),
            *_of(TOY, "plugin.py", "parts.py", "engine.py", "state.py"),
        ),
    ),
    Reading(
        "a strategy for several ranks (data parallel)",
        "write-a-backend",
        2961,
        11,
        (
            *_of(GUIDES, "write-a-backend.md"),
            *_of(
                HOOKS,
                "compute/collectives.py",
                "engine.py",
                "compute/backends.py",
                "data/datum.py",
                "compute/losses.py",
            ),
            *_of(STEPS, "normalizers.py", "totals.py"),
            *_of(TORCH, "ranks.py", "passes.py", "engine.py"),
        ),
    ),
)


def table() -> str:
    """The table, as Markdown."""
    rows = ["| to write | begin with | files | lines |", "|---|---|---|---|"]
    for reading in READINGS:
        guide = f"[{reading.guide}]({reading.guide}.md)"
        rows.append(f"| {reading.plugin} | {guide} | {len(reading.files)} | {reading.lines():,} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def problems() -> list[str]:
    """What is wrong with the lists or the table."""
    found = [
        f"{reading.plugin}: {file} is gone"
        for reading in READINGS
        for file in reading.files
        if not (ROOT / file).is_file()
    ]
    if found:
        return found
    page = PAGE.read_text(encoding="utf-8")
    for reading in READINGS:
        lines = reading.lines()
        if lines > reading.most_lines:
            found.append(f"{reading.plugin}: {lines} lines are to be read, more than {reading.most_lines}")
        if len(reading.files) > reading.most_files:
            found.append(f"{reading.plugin}: {len(reading.files)} files are to be read, more than {reading.most_files}")
        row = re.search(rf"^\| {re.escape(reading.plugin)} \|.*\| (\d+) \| ([\d,]+) \|$", page, re.M)
        if row is None:
            found.append(f"{PAGE.name} has no row for {reading.plugin}")
        elif int(row[1]) != len(reading.files) or abs(int(row[2].replace(",", "")) - lines) > SLACK * lines:
            found.append(f"{PAGE.name}: the row for {reading.plugin} is old; run python tools/count_reading.py")
    return found


def main() -> int:
    """Write or check the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        for problem in problems():
            print(problem, file=sys.stderr)
        return 1 if problems() else 0
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
