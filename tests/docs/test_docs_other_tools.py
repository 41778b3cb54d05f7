"""The page beside other tools: a row for every point that is compared, whose guide section has commands that a test
runs, and a copy of each tool that was read, with its date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
PAGE = GUIDES / "other-tools.md"
TOOLS = ["axolotl", "LLaMA-Factory", "Unsloth", "TRL", "ms-swift"]
BULLETS = [
    "Start", "Move over", "Train as people expect", "Watch", "Try and ship", "Pictures and sound", "A place to read",
]  # fmt: skip

ELSEWHERE = {
    "serve-openai.md": "tests/services/test_guides.py",
    "assistant.md": "tests/services/test_guides.py",
    "serve.md": "tests/services/test_guides.py",
    "serve-openai.md#answers-from-vllm": "tests/services/test_openai_vllm.py",
    "serve-openai.md#several-adapters-on-one-base": "tests/services/test_openai_stacks.py",
    "serve-openai.md#images": "tests/media/test_openai_media.py",
    "chat.md#pictures-sounds-videos": "tests/media/test_vision_answers.py",
    "images-sound-video.md#a-run-on-sounds": "tests/media/test_media_guide.py",
    "images-sound-video.md#rows": "tests/media/test_video_truth.py",
    "images-sound-video.md#settings": "tests/media/test_video_truth.py",
    "move-over.md#a-trainer-of-trl-run-from-here": "tests/runs/test_trl_bridge.py",
    "watch.md#while-it-trains": "plugins/commands/watch/tests",
    "watch.md#which-settings-are-best": "tests/runs/test_sweeps.py",
    "watch.md#other-places": "plugins/trackers/wandb/tests",
    "watch.md#from-python": "tests/runs/test_example_notebooks.py",
    "your-data.md#answers-to-compare-to-judge-to-find": "tests/media/test_vision_data.py",
    "tasks.md#send-it-to-ollama": "tests/runs/test_other_readers.py",
    "quantised-bases.md#merging": "tests/runs/test_merge_quantised.py",
    "glossary.md": "tests/docs/test_docs_pages.py",
    "many-devices.md": "plugins/strategies/ddp/tests",
    "board.md": "plugins/commands/board/tests/test_board_browser.py",
    "README.md": "tests/docs/test_docs_commands.py",
    "install.md": "tests/layout/test_layout_dockerfile.py",
    "../../CONTRIBUTING.md": "tests/tools/test_site_pages.py",
}
"""Sections whose commands serve, draw or need what is not there in the tests of guides, and what runs them instead."""


def tables() -> dict[str, list[list[str]]]:
    """Rows of each bullet's table, by its heading."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        found[title] = rows
    return found


ROWS = [row for title in BULLETS for row in tables()[title][2:]]


def links(cell: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", cell)


def section(target: str) -> str:
    """Text below a heading of a guide, subsections included; the whole page where none is named."""
    name, _, anchor = target.partition("#")
    text = (GUIDES / name).resolve().read_text(encoding="utf-8")
    if not anchor:
        return text
    fenced = re.sub(r"^```.*?^```$", lambda m: m[0].replace("\n#", "\n "), text, flags=re.M | re.S)
    heads = [(m.start(), len(m[1]), m[2]) for m in re.finditer(r"^(#+) (.+)$", fenced, re.M)]
    for at, depth, title in heads:
        if re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") == anchor:
            end = min((start for start, other, _ in heads if start > at and other <= depth), default=len(text))
            return text[at:end]
    raise AssertionError(f"{target}: there is no such heading")


def test_a_newcomer_finds_every_point_or_the_reason_why_not() -> None:
    head, _, *rows = tables()["For a newcomer"]
    assert head[2:] == ["LLaMA-Factory", "Unsloth", "axolotl", "TRL", "oumi", "H2O LLM Studio"]
    for row in rows:
        assert len(row) == len(head), row[0]
        assert links(row[1]) or row[1].startswith("not here: "), row[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_a_row_names_a_section_whose_commands_are_run(row: list[str]) -> None:
    assert len(row) == 2 + len(TOOLS), "a cell for each tool, empty or not"
    targets = links(row[1])
    assert targets or row[1] in ("", "not yet"), "what we do, where it is explained, or that we do not"
    for target in targets:
        if "<!-- test" not in section(target):
            assert (ROOT / ELSEWHERE[target]).exists(), f"{target} has no command that is run"


def test_every_bullet_has_rows_and_every_tool_a_copy_with_its_date() -> None:
    found = tables()
    assert list(found)[: len(BULLETS)] == BULLETS
    assert all(rows[0] == ["to", "finetooth", *TOOLS] and len(rows) > 3 for rows in map(found.get, BULLETS) if rows)
    copies = found["What was read"][2:]
    assert [row[0] for row in copies] == TOOLS
    assert all(re.fullmatch(r"[0-9a-f]{9,10}, \d{1,2} \w+ 20\d\d", row[1]) and row[2] for row in copies)
    assert re.search(r"on \d{1,2} \w+ 20\d\d\.", PAGE.read_text(encoding="utf-8"))
    assert not set(ELSEWHERE) - {target for row in ROWS for target in links(row[1])}, "a section that no row names"
