"""One wording for files that are not there."""

from __future__ import annotations

from pathlib import Path

from finetooth_toolbox.files.missing import MissingFile, no_such_file


def test_the_file_that_was_probably_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "models").mkdir()
    near = f"did you mean {tmp_path.as_posix()}/train.jsonl?"
    assert no_such_file(tmp_path / "trian.jsonl") == (f"no such file: {tmp_path.as_posix()}/trian.jsonl", near)
    assert no_such_file(tmp_path / "train.json")[1] == near
    assert no_such_file(tmp_path / "eval.jsonl")[1] == "check the path"
    assert no_such_file(tmp_path / "eval.jsonl", advice="look")[1] == "look"
    problem, action = no_such_file(str(tmp_path / "model"))
    assert problem == f"no such file or folder: {tmp_path.as_posix()}/model"
    assert action == f"did you mean {tmp_path.as_posix()}/models?"


def test_who_knows_the_setting_adds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    said = f"no such file: {path.as_posix()} (check url)"
    error = MissingFile(path, advice="check url")
    assert str(error) == said
    assert str(error.of("data.eval")) == f"data.eval: {said}"
    assert str(error.of("data.eval").of("data.train")) == f"data.eval: {said}"
    assert error.exit_code == 2
