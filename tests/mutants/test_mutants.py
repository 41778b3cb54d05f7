"""The lists of mutants follow the code, and the judge knows a change that is noticed from one that is not."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from judge_mutants import MISSED, NOTICED, UNJUDGED, Copy, Keys, report
from mutant_lists import ROOT, Mutant, read

MUTANTS = read()


def test_every_mutant_has_its_place_and_is_python() -> None:
    for mutant in MUTANTS:
        changed = mutant.applied((ROOT / mutant.file).read_text())
        ast.parse(changed)
        assert mutant.new != mutant.old
        assert mutant.tests and all((ROOT / name.partition("::")[0]).exists() for name in mutant.tests), mutant.name


def test_there_are_as_many_as_the_page_says() -> None:
    assert len(MUTANTS) >= 250


def test_a_list_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "losses.toml").write_text('[[mutant]]\nname = "x"\nfile = "a.py"\nold = "a"\ntests = []\n')
    with pytest.raises(ValueError, match=r"losses.toml: x: .*new"):
        read(tmp_path)
    mutant = Mutant("losses", "x", "a.py", "a", "b", ("t.py",))
    with pytest.raises(ValueError, match="2 times"):
        mutant.applied("a, a")


def small_copy(folder: Path, test: str) -> Copy:
    """A copy of a workspace with one function and its test."""
    copy = object.__new__(Copy)
    copy.root, copy._sound = folder, set()
    # installed pytest plugins, which nothing here needs, take three of the four seconds that one judgement needs
    copy._environment = {"PATH": "", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    thorough\n")
    (folder / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    begin = "import sys\nsys.path.insert(0, '.')\nimport pytest\nfrom sums import add\n\n"
    (folder / "test_sums.py").write_text(begin + test)
    return copy


@pytest.mark.parametrize("mark", ["", "@pytest.mark.slow\n"])
@pytest.mark.parametrize("new,verdict", [("return a - b", NOTICED), ("return b + a", MISSED)])
def test_the_judge(tmp_path: Path, mark: str, new: str, verdict: str) -> None:
    copy = small_copy(tmp_path, f"{mark}def test_sum():\n    assert add(1, 2) == 3\n")
    failed = "test_sums.py::test_sum" if verdict == NOTICED else ""
    assert copy.judge(Mutant("here", "x", "sums.py", "return a + b", new, ("test_sums.py",))) == (verdict, failed)
    assert "a + b" in (tmp_path / "sums.py").read_text()  # the code is as it was


def test_what_fails_anyway_notices_nothing(tmp_path: Path) -> None:
    copy = small_copy(tmp_path, "def test_sum():\n    assert add(1, 2) == 4\n")
    verdict, _ = copy.judge(Mutant("here", "x", "sums.py", "return a + b", "return a - b", ("test_sums.py",)))
    assert verdict == f"{UNJUDGED}: test_sums.py::test_sum fails on the code as it is"


def test_a_verdict_holds_until_a_source_or_a_test_of_it_changes(tmp_path: Path) -> None:
    """Also a source that only something imports which the changed file imports."""
    texts = {
        "one/src/one/sums.py": "from two import less\n",
        "two/src/two/__init__.py": "less = 1\n",
        "one/tests/test_sums.py": "assert True\n",
        "one/tests/conftest.py": "",
        "two/tests/test_two.py": "assert True\n",
        "docs/page.md": "a page\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    mutant = Mutant("here", "x", "one/src/one/sums.py", "less", "more", ("one/tests/test_sums.py::test_sum",))
    before = Keys(tmp_path)(mutant)
    assert Keys(tmp_path)(mutant) == before != Keys(tmp_path)(replace(mutant, new="fewer"))
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "# changed\n")
        holds = name in ("two/tests/test_two.py", "docs/page.md")
        assert (Keys(tmp_path)(mutant) == before) is holds, name
        (tmp_path / name).write_text(text)


def test_too_few_noticed_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    one = Mutant("here", "x", "sums.py", "a", "b", ("t.py",))
    assert report([(one, NOTICED)] * 97 + [(one, MISSED)] * 3) == 0
    assert report([(one, NOTICED)] * 96 + [(one, MISSED)] * 4) == 1
    assert "MISSED: here: x (sums.py)" in capsys.readouterr().out
