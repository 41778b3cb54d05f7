"""docs/families.md from results.json: `python tests/families/page.py` tries every cell first, in some minutes.

.venv/bin/python tests/families/page.py              # all rows
.venv/bin/python tests/families/page.py qwen3 phi    # these
.venv/bin/python tests/families/page.py --templates  # those of renderers
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from template_suites import CASES, SUITES, Judged, compared
from tiny_families import ABSENT, COLUMNS, TARGETS, TYPES, Tiny

RESULTS, PAGE = Path(__file__).with_name("results.json"), Path(__file__).parents[2] / "docs/families.md"
TEMPLATE_RESULTS = Path(__file__).with_name("template_results.json")
Cells = Mapping[str, Mapping[str, Sequence[object]]]
OPENING = """\
# What each family does

Written by `python tests/families/page.py`: a tiny random model of each `model_type` of transformers is trained, and
what a cell says is what it did. The tests try the cells again.

| column | a yes means |
|---|---|
| sft | two steps of LoRA on all linear modules, and the loss falls |
| dpo | two steps over pairs; the first loss is log 2 |
| grpo | the model samples and learns; at the first step the ratio of each token to what drew it is 1 |
| packed | rows that share a row of the input have losses and gradients of rows alone (transformers' code) |
| experts | LoRA on experts that are held as one weight |
| images | pictures or sounds in the rows train too (tried in tests/media) |
| quantised | LoRA over a base in int4, and the loss falls |
| export | `ft merge` writes the base's own tensor names; transformers loads it and computes what the run does |

"""

RENDERERS = """
## What each renderer does

Conversations are drawn, and the official template alone judges: those of the models of 2026 that trl carries, and
shared ones; where none is at hand, conversations written out by hand. `jinja` speaks a template that no renderer of a
family does.

| column | a yes means |
|---|---|
| template | tokens of conversations and of prompts are the template's |
| mask | of an answer trains what stands behind its prompt, with the token that ends it, and nothing else |
| parse | an answer gives back its content, reasoning and calls |
| extension | the prompt for a later turn begins with all that was written before |

"""


def page(cells: Cells, spoken: Cells) -> str:
    """The page; a cell that is not a yes has the number of its reason."""
    reasons: list[str] = []
    lines = ["| model_type | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for kind in TYPES:
        row = [f"`{kind}`"]
        for column in COLUMNS:
            works, why = cells[kind][column]
            if not works and why not in reasons:
                reasons.append(str(why))
            row.append("yes" if works else f"no ({reasons.index(str(why)) + 1})")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Reasons, as commands say them:", ""]
    lines += [f"{number}. {wrapped(reason)}" for number, reason in enumerate(reasons, 1)]
    lines += ["", "Not on all linear modules but on attention, since peft takes `gate_proj` for that of the experts:"]
    lines += [", ".join(f"`{kind}`" for kind in TARGETS) + ".", "", "Without a row:", ""]
    lines += [f"- {wrapped(f'{kinds}: {why}.')}" for kinds, why in ABSENT.items()]
    lines += [RENDERERS.rstrip("\n"), "", *renderers(spoken)]
    lines += ["", "Next: [a new model in an hour](guides/write-a-family.md) or [choose a method]"]
    lines[-1] += "(guides/choose-a-method.md)."
    return OPENING + "\n".join(lines) + "\n"


def renderers(cells: Cells) -> list[str]:
    """The table of templates, and the reasons of its cells and of what is not compared."""
    reasons: list[str] = []

    def number(reason: str) -> str:
        if reason not in reasons:
            reasons.append(reason)
        return f"({reasons.index(reason) + 1})"

    lines = ["| template | renderer | compared | " + " | ".join(SUITES) + " |", "|---" * (len(SUITES) + 3) + "|"]
    for name, case in CASES.items():
        row = [f"`{name}`", f"`{case.renderer}`", compared(case) + (f" {number(case.without)}" if case.without else "")]
        row += ["yes" if works else f"no {number(str(why))}" for works, why in (cells[name][suite] for suite in SUITES)]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Reasons, and what is not compared:", ""]
    return lines + [f"{i}. {wrapped(reason)}" for i, reason in enumerate(reasons, 1)]


def wrapped(text: str) -> str:
    """In lines of at most 116 characters, those after the first set in."""
    import textwrap

    return "\n".join(textwrap.wrap(text, 112, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False))


def main(kinds: Sequence[str]) -> None:
    """Try cells and write the page."""
    cells = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not kinds or "--templates" in kinds:
        spoken = {name: {suite: Judged(name).cell(suite) for suite in SUITES} for name in CASES}
        rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in spoken.items())
        TEMPLATE_RESULTS.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    for kind in [kind for kind in kinds or TYPES if kind != "--templates"]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FT_CACHE"] = f"{folder}/cache"
            tiny = Tiny(kind, Path(folder))
            cells[kind] = {column: tiny.cell(column) for column in COLUMNS}
        written = {kind: cells[kind] for kind in TYPES if kind in cells}
        RESULTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(*(json.loads(file.read_text()) for file in (RESULTS, TEMPLATE_RESULTS))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
