"""What torch's own file says of its build, beside what torch says once it is imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_torchshared.build import built_for

WRITTEN = """from typing import Optional

__version__ = '2.13.0{label}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'abc'
hip: Optional[str] = {hip}
"""


@pytest.mark.parametrize(
    ("cuda", "hip"), [("None", "None"), ("'12.8'", "None"), ("None", "'7.0.51831'"), ('"12.8"', "None")]
)
def test_a_build_is_known_by_what_its_file_says(tmp_path: Path, cuda: str, hip: str) -> None:
    (tmp_path / "version.py").write_text(WRITTEN.format(label="", cuda=cuda, hip=hip))
    assert built_for("cuda", tmp_path) is (cuda != "None")
    assert built_for("hip", tmp_path) is (hip != "None")


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert not built_for("cuda", tmp_path)


def test_the_installed_torch_says_the_same_of_itself() -> None:
    torch = pytest.importorskip("torch")
    assert built_for("cuda") is (torch.version.cuda is not None)
    assert built_for("hip") is (torch.version.hip is not None)
