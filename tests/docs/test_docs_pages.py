"""The pages are true in what can be looked up: links, commands, options of commands, recipes, code."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
from finetooth_core.cli.group import make_group
from finetooth_core.cli.start_options import StartOptions, read_start_options
from finetooth_core.cli.state import State
from finetooth_core.settings.recipe import load

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
COMMAND = re.compile(r"(?:^|`|\s)((?:\.venv/bin/)?ft (?:[a-z]|-)[^`]*)`")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}[A-Z_]*\b")


def all_pages(root: Path) -> list[Path]:
    rooms = ("hooks/*", "core/*", "kernels/*", "plugins/*/*", "contrib/*")
    packages = [page for room in rooms for page in root.glob(f"{room}/README.md")]
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), *packages])


def test_links_lead_somewhere(root):
    broken = []
    for page in all_pages(root):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for found in LINK.finditer(text):
            target = next(group for group in found.groups() if group)
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                broken.append(f"{page.relative_to(root)}: {target}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                broken.append(f"{page.relative_to(root)}: no heading {target}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """What headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_commands_parse(page, blocks):
    """Every `ft` command that a page shows has arguments and options that the command takes."""
    text = page.read_text(encoding="utf-8")
    shown = [line for block in blocks(page) if block.language == "sh" for line in joined(block.text)]
    shown += [found[1] for found in COMMAND.finditer(re.sub(r"```.*?```", "", text, flags=re.S))]
    wrong = []
    for line in shown:
        words = command_words(line)
        if words is not None:
            problem = parse_problem(words)
            if problem:
                wrong.append(f"{line}: {problem}")
    assert not wrong


@pytest.mark.parametrize("line", ["ft run recipe.yaml --outptu x", "ft chekc recipe.yaml", "ft plugins new x"])
def test_a_wrong_command_would_be_found(line):
    assert parse_problem(command_words(line))


def joined(script: str) -> list[str]:
    """Lines of a script, continued ones joined."""
    return script.replace("\\\n", " ").splitlines()


def command_words(line: str) -> list[str] | None:
    """The words after `ft`, up to a pipe or another command; None if the line calls no `ft`."""
    words = shlex.split(line, comments=True)
    starts = [i for i, word in enumerate(words) if word in ("ft", ".venv/bin/ft")]
    if not starts:
        return None
    rest = words[starts[0] + 1 :]
    ends = [i for i, word in enumerate(rest) if word in ("|", "&&", ";", ">", "||")]
    return rest[: ends[0]] if ends else rest


def parse_problem(given: list[str]) -> str:
    """Parse without running; what is wrong, empty if nothing is."""
    _, words = read_start_options([word for word in given if word not in ("...", "--help")], {})
    state, asks_help = State(StartOptions()), "--help" in given
    group: click.Command = make_group()
    context = click.Context(group, info_name="ft", obj=state)
    try:
        while words and isinstance(group, click.Group):
            if words[0].startswith("-"):
                group.make_parser(context).parse_args(list(words))
                return ""
            if PLACEHOLDER.fullmatch(words[0]):
                return ""
            command = group.get_command(context, words[0])
            if command is None:
                return f"no command {words[0]}"
            group, words = command, words[1:]
            context = click.Context(group, parent=context, info_name=group.name)
        if words and not asks_help:
            group.parse_args(context, list(words))
    except click.BadParameter as error:
        problem = error.format_message()
        return "" if "does not exist" in problem else problem  # a folder that an earlier command makes
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_recipes_are_valid(root):
    """Every recipe that the documentation holds: known settings, and entries of this workspace with known options."""
    recipes = sorted(p for p in (root / "docs").rglob("*.yaml") if p.name != "pipeline.yaml")
    assert recipes
    for recipe in recipes:
        load(recipe)


def test_pages_say_something(page):
    heading, _, text = page.read_text(encoding="utf-8").partition("\n")
    assert heading.startswith("# ") and len(text.split()) > 20, page


def test_decisions_are_short_and_no_diaries(root):
    """What was measured later goes to docs/benchmarks, where a decision links to it."""
    for decision in (root / "docs/decisions").glob("0*.md"):
        text = decision.read_text(encoding="utf-8")
        assert text.count("\n") < 90, decision.name
        assert not re.search(r"^#+ Later", text, re.M), decision.name


def test_python_blocks_parse(page, blocks):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def test_pages_name_nothing_of_a_machine(root):
    """No path of the machine that wrote a page, no address of a private index."""
    for page in all_pages(root):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|tmp|Users)/\w", text), page
        assert not re.search(r"https?://(localhost|127\.|10\.|192\.168\.)", text), page


def test_lines_are_wrapped(page):
    """Prose is wrapped at 110; tables, code and links may be longer."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= line.startswith("```")
        if not inside and not line.lstrip().startswith(("|", "!", "<", "- [", "#")) and "](" not in line:
            assert len(line) <= 120, f"{page.name}:{number}"


MINUTES, WORDS_A_MINUTE = 10.2, 200


def guides() -> list[Path]:
    folder = Path(__file__).parents[2] / "docs" / "guides"
    return [page for page in sorted(folder.glob("*.md")) if page.name != "README.md"]


@pytest.mark.parametrize("guide", guides(), ids=lambda path: path.name)
def test_a_guide_takes_ten_minutes_and_says_what_it_leads_to(guide: Path) -> None:
    """Tables are for looking up; comments are not read."""
    text = re.sub(r"<!--.*?-->", "", guide.read_text(encoding="utf-8"), flags=re.S)
    read = [line for line in text.splitlines() if not line.startswith("|")]
    assert sum(len(line.split()) for line in read) <= MINUTES * WORDS_A_MINUTE
    assert re.search(r"\]\([^)]*\.md", " ".join(read[-8:])), "its end leads to no page"


def test_every_guide_stands_in_the_list_of_guides_and_each_kind_of_reader_has_a_path() -> None:
    text = (guides()[0].parent / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in guides() if f"({page.name}" not in text]
    paths = {line.split("|")[1].strip(" *"): line for line in text.splitlines() if line.startswith("| **")}
    assert list(paths) == ["a first model", "to move over", "a method of your own", "to serve", "many devices"]
    assert all(4 <= line.count(".md)") <= 6 for line in paths.values())
