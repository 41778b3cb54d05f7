"""Every broken file of the shared data gives what its README asks for, through the command a user types.

A refusal is one line on standard error that names the file, with exit code 2 and nothing on standard output.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Ft = Callable[..., Any]

REFUSED: dict[str, Sequence[str]] = {
    # file: what the one line says
    "truncated.jsonl": ("line 3: not complete JSON (unexpected end)", "2 good"),
    "mixed_line_endings.jsonl": ("line 3: a carriage return inside the line",),
    "invalid_utf8.jsonl": ("line 2: not UTF-8: byte 0xe9 at offset ", "2 good"),
    "empty.jsonl": ("the file is empty",),
    "duplicate_keys.jsonl": ("line 2: the key 'messages' occurs twice", "line 3: the key 'role' occurs twice"),
    "null_content.jsonl": (
        "jsonl:2: messages[0].content is null",
        "jsonl:3: messages[1].content is null",
        "3 of 4 rows",
    ),
    "wrong_roles.jsonl": (
        "jsonl:2: messages[0].role is 'human', accepted are system, user, assistant, tool",
        "messages[1].role is 'gpt'",
        "jsonl:3: messages[0].role is 'User'",
        "messages[1].role is 'assistant '",
        "jsonl:4: messages[0].role is ''",
        "messages[1].role is a number",
        "roles: {gpt: assistant, human: user}",
    ),
    "ends_with_user.jsonl": ("jsonl:3: nothing to train on",),
    "tools_as_string.jsonl": ("jsonl:3: tools is a string but not JSON",),
    "nested_wrong_types.jsonl": (
        "line 5: an array",
        "line 6: a string",
        "line 7: null",
        "3 of 4 rows cannot be used",
        "jsonl:2: messages is an object, not a list",
        "jsonl:3: messages[0] is a list, not an object; messages[1] is a list",
        "jsonl:4: messages[0].content is a number, not text; messages[1].content is an object",
    ),
    "missing_fields.jsonl": (
        "jsonl:2: no column 'messages'; the row has 'message'; is 'message' meant?",
        "jsonl:3: messages[0].role is missing; messages[1].content is missing",
        "jsonl:4: no column 'messages'; the row has 'prompt': it looks like prompt_completion without 'completion'",
        "jsonl:5: the row is empty",
    ),
    "mixed_schema.jsonl": (
        "jsonl:2: no column 'messages'; the row has 'prompt', 'completion': it looks like prompt_completion",
        "3 of 4 rows",
        "1 like prompt_completion (prompt, completion), 1 like text (text), 1 like preference (chosen, rejected)",
    ),
    "nan_infinity.jsonl": (
        "jsonl:1: 'margin' is NaN, not a finite number",
        "jsonl:2: 'margin' is Infinity, not a finite number",
        "jsonl:3: 'margin' is 1e999, not a finite number",
    ),
}
READ: dict[str, Sequence[str]] = {
    # file: what is said beside the counts
    "bom.jsonl": ("begins with a byte order mark",),
    "array_instead_of_lines.jsonl": ("holds a JSON array, not what its name says",),
    "blank_lines.jsonl": (),
    "messages_as_string.jsonl": ("jsonl:2 and maybe other rows; it was decoded",),
}
ELSEWHERE = {
    "README.md", "img", "long_single_line.jsonl", "same_chosen_rejected.jsonl", "split_leak", "ragged.csv",
    "path_traversal_images.jsonl", "broken_images.jsonl", "not_gzip.jsonl.gz", "truncated.parquet",
}  # fmt: skip
"""Those with a test of their own below, and what is no data file."""


def test_no_file_is_forgotten(bad: Path) -> None:
    assert {path.name for path in bad.iterdir()} == {*REFUSED, *READ, *ELSEWHERE}


def refusal(said: Any, path: Path, *, shows: bool = False) -> str:
    """The one line with which a command refuses a file.

    Args:
        shows: it may show the rows that can be used.
    """
    assert said.code == 2 and (shows or not said.out), said
    lines: list[str] = said.error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and path.name in lines[0], said.error
    return lines[0]


@pytest.mark.parametrize("file", REFUSED)
def test_refused(ft: Ft, bad: Path, file: str) -> None:
    line = refusal(ft(bad / file), bad / file)
    for wanted in REFUSED[file]:
        assert wanted in line


@pytest.mark.parametrize("command", [("check",), ("data", "prepare"), ("run",), ("data", "preview")])
@pytest.mark.parametrize("file", ["truncated.jsonl", "wrong_roles.jsonl", "empty.jsonl"])
def test_other_commands_refuse_with_the_same_line(ft: Ft, bad: Path, file: str, command: tuple[str, ...]) -> None:
    second = refusal(ft(bad / file, command=command), bad / file, shows=command == ("data", "preview"))
    assert refusal(ft(bad / file), bad / file) == second


@pytest.mark.parametrize("file", READ)
def test_read(ft: Ft, bad: Path, file: str) -> None:
    said = ft(bad / file)
    checked = ft(bad / file, command=("check",))
    assert (said.code, checked.code) == (0, 0), said.error + checked.error
    assert rows_used(said) == 2
    for wanted in READ[file]:
        assert wanted in checked.out + checked.error


def rows_used(said: Any) -> int:
    """Rows of the training split that become data, as the table of `ft data check` counts them."""
    (line,) = (line for line in said.out.splitlines() if line.split()[:1] == ["train"])
    return int(line.split()[2].replace(",", ""))


@pytest.mark.parametrize("command", [("check",), ("data", "prepare")])
def test_a_file_that_is_only_wrong_in_rows_counts_them(ft: Ft, bad: Path, tmp_path: Path, command: Any) -> None:
    """Lines 2 to 4 of `nested_wrong_types` once its lines 5 to 7 are no longer in their way."""
    lines = (bad / "nested_wrong_types.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    line = refusal(ft(tmp_path / "rows.jsonl", command=command), tmp_path / "rows.jsonl")
    assert "3 of 4 rows cannot be used" in line
    assert "jsonl:2: messages is an object, not a list" in line
    assert "jsonl:3: messages[0] is a list, not an object; messages[1] is a list" in line
    assert "jsonl:4: messages[0].content is a number, not text; messages[1].content is an object" in line


def test_a_conversation_that_ends_with_the_user_is_counted(ft: Ft, bad: Path, tmp_path: Path) -> None:
    lines = (bad / "ends_with_user.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = ft(tmp_path / "rows.jsonl")
    assert said.code == 0 and "1 conversation ends with a message that is not the assistant's" in said.out


def test_tools_in_a_string_are_tools(bad: Path, examples_of: Callable[..., Any], tmp_path: Path) -> None:
    lines = (bad / "tools_as_string.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first, second = (example for _, example in examples_of(tmp_path / "rows.jsonl"))
    assert first.tools == second.tools != ()


@pytest.mark.slow
def test_a_long_line_is_read_and_left_out_with_a_count(ft: Ft, bad: Path) -> None:
    path = bad / "long_single_line.jsonl"
    said = ft(path)
    assert said.code == 0 and rows_used(said) == 1
    assert "1 left out: longer than train.max_length" in said.out
    shown = ft(path, command=("data", "preview", "--dropped")).out
    assert "long_single_line.jsonl:1" in shown and "left out: longer than train.max_length" in shown


@pytest.fixture
def examples_of(recipe_of: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Ids and examples, for files whose method is not that of the recipe."""

    def read(path: Path) -> Any:
        from finetooth_core import api
        from finetooth_core.planning.context import RunContext

        session = api.session(recipe_of(path))
        context = RunContext(session.recipe, session.plugins.catalog, tmp_path / "run", session.plugins)
        return context.examples("train").rows

    return read


PAIRS = """
from finetooth_hooks import Method, MethodBase, Options, Prepared, Rendered, hookimpl
from finetooth_hooks.data.preparation import Limit, Rendering


@hookimpl
def ft_methods():
    yield Method(name="pairs", build=f"{__name__}:build")


class PairOptions(Options):
    pass


def build(options: PairOptions, context):
    return Pairs(context)


def rendering(options, context):
    return lambda pair: Rendered((1, 2, 3), (0.0, 1.0, 1.0))


class Pairs(MethodBase):
    def __init__(self, context):
        self.context = context

    def prepare(self):
        limit = Limit.of(self.context.train)
        return Prepared(1, 1, self.context.prepare("train", Rendering(f"{__name__}:rendering"), limit).report)
"""
"""A method that learns from whatever there is."""


def test_pairs_that_teach_nothing_are_counted(ft: Ft, bad: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(PAIRS, encoding="utf-8")
    path, given = (
        bad / "same_chosen_rejected.jsonl",
        {"more": {"method": "pairs", "plugins": [str(tmp_path / "pairs.py")]}},
    )
    said = ft(path, **given, command=("check",))
    assert said.code == 0 and rows_used(said) == 1, said
    for line, reason in enumerate(
        ("chosen and rejected are the same", "chosen is empty", "chosen and rejected have no prompt in common"), start=2
    ):
        assert f"1 left out: {reason} ({path.name}:{line})" in said.out.replace(f"{path.parent}/", "")
    strict = ft(path, **given, format={"name": "preference", "unusable": "raise"})
    line = refusal(strict, path)
    assert "3 of 4 rows cannot be used" in line and "jsonl:2: chosen and rejected are the same" in line


def test_pairs_are_not_for_supervised_fine_tuning(ft: Ft, bad: Path, tmp_path: Path) -> None:
    lines = (bad / "same_chosen_rejected.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "the row is a preference pair, and method sft learns from conversations" in refusal(
        ft(tmp_path / "rows.jsonl"), tmp_path / "rows.jsonl"
    )


def test_a_margin_in_a_string_is_read_if_it_is_a_number(
    examples_of: Callable[..., Any], bad: Path, tmp_path: Path
) -> None:
    """As columns of CSV files have them."""
    from finetooth_hooks import DataError

    line = (bad / "nan_infinity.jsonl").read_text(encoding="utf-8").splitlines()[3]
    (tmp_path / "rows.jsonl").write_text(line, encoding="utf-8")
    ((_, pair),) = examples_of(tmp_path / "rows.jsonl")
    assert pair.margin == 0.5
    for text in ("high", "nan", "1e999", "true"):
        (tmp_path / "rows.jsonl").write_text(line.replace("0.5", text), encoding="utf-8")
        with pytest.raises(DataError, match=r"rows\.jsonl:1: margin"):
            examples_of(tmp_path / "rows.jsonl")


def test_a_split_leak_is_counted(ft: Ft, bad: Path) -> None:
    said = ft(bad / "split_leak/train.jsonl", eval=str(bad / "split_leak/valid.jsonl"))
    assert said.code == 0
    assert "1 row of train repeats an earlier one" in said.out and "train.jsonl:3" in said.out
    assert "1 row of eval is in train too" in said.out


# --- files that other readers open ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["path_traversal_images.jsonl", "broken_images.jsonl"])
def test_images_are_refused_row_by_row(ft: Ft, bad: Path, file: str) -> None:
    """Nothing outside the folder is opened; why broken ones are refused by a model that reads images is in
    tests/media."""
    lines = (bad / file).read_text(encoding="utf-8").splitlines()
    line = refusal(ft(bad / file), bad / file)
    assert f"{len(lines)} of {len(lines)} rows cannot be used" in line and re.search(rf"{file}:1(,.*)?: ", line)


def test_paths_outside_the_folder_are_named(ft: Ft, bad: Path) -> None:
    line = refusal(ft(bad / "path_traversal_images.jsonl"), bad / "path_traversal_images.jsonl")
    for problem in ("leaves the data folder", "is an absolute path", "is a URL, which is never fetched"):
        assert problem in line


def test_plain_lines_named_gz(ft: Ft, bad: Path) -> None:
    """Either two rows with a note, or named for what it is."""
    path = bad / "not_gzip.jsonl.gz"
    said = ft(path)
    if said.code == 0:
        assert rows_used(said) == 2 and "gz" in said.out + said.error
    else:
        assert "it is named .gz but holds no gzip data" in refusal(said, path)


def test_a_parquet_file_without_a_footer(ft: Ft, bad: Path) -> None:
    assert "footer" in refusal(ft(bad / "truncated.parquet"), bad / "truncated.parquet")


def test_a_ragged_table_is_named_line_by_line(ft: Ft, bad: Path) -> None:
    line = refusal(ft(bad / "ragged.csv"), bad / "ragged.csv")
    assert all(f"line {number}" in line for number in (3, 4, 6))


def test_a_shard_of_text_alone_asks_for_the_column(ft: Ft, tmp_path: Path) -> None:
    content = b"some words"
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        member = tarfile.TarInfo("000.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    said = ft(tmp_path / "shard.tar")
    assert said.code == 2
    assert said.error.count("\n") == 1
    assert "with the columns __key__, txt (set data.format: {name: text, column: txt}, or rename" in said.error
    given = ft(tmp_path / "shard.tar", format={"name": "text", "column": "txt"})
    assert "knows a row" not in given.error


TURNS = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"}]
PICTURE = [{"role": "user", "content": [{"type": "text", "text": "say"}, {"type": "image", "image": "x.png"}]}]


def test_a_format_that_reads_no_images_says_so_with_the_row(ft: Ft, tmp_path: Path) -> None:
    row = {"prompt": PICTURE, "completions": ["a", "b"], "labels": [True, False]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    said = ft(tmp_path / "rows.jsonl")
    assert said.code == 2
    assert "rows.jsonl:1: prompt[0].content[1] is a part of type 'image'; in rows of this format only" in said.error


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"instruction": "q", "output": "a", "image": "x.png"}, "'image', which format instruction"),
        ({"instruction": "q", "output": "a", "audio": {"path": "x.wav"}}, "'audio', which format instruction"),
        ({"messages": TURNS, "audio": None}, ""),
    ],
)
def test_pictures_and_sound_that_nobody_reads_are_said(
    ft: Ft, tmp_path: Path, row: dict[str, Any], column: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    said = ft(tmp_path / "rows.jsonl", command=("check",))
    assert said.code == 0
    note = f"rows.jsonl:1 has {column} does not read: only the text trains"
    assert (note in said.out + said.error) if column else ("does not read" not in said.out + said.error)
