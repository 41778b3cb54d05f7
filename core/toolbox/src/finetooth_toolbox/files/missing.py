"""The error for a file that is not there: one wording, and the name that was probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetooth_hooks.errors import DataError

from finetooth_toolbox.text.nearest import nearest_path


def or_moved(action: str, model: str) -> str:
    """What to do about a model that is not there, also where it is the base of a run, whose recipe keeps the absolute
    path, and was moved."""
    moved = "a run's base that was moved: model=NEW, or model: NEW in the run's recipe.yaml"
    return f"{action}; {moved}" if Path(model).is_absolute() else action


def no_such_file(path: Path | str, *, advice: str = "check the path", endings: Sequence[str] = ()) -> tuple[str, str]:
    """Problem and action for a path at which nothing is, as errors take them: `no such file: trian.jsonl` and
    `did you mean train.jsonl?`. Where no file has nearly that name, the problem names the folder that a relative path
    counts from.

    Args:
        advice: the action where no file has nearly that name.
        endings: which the meant file may have; default is that of `path`.
    """
    shown, path = path if isinstance(path, str) else path.as_posix(), Path(path)
    close = nearest_path(path.expanduser(), endings) or _of_another_kind(path.expanduser())
    shown += "" if close or path.expanduser().is_absolute() else f" in {Path.cwd().as_posix()}"
    problem = f"no such {'file' if path.suffix else 'file or folder'}: {shown}"
    return problem, f"did you mean {close.as_posix()}?" if close else advice


def _of_another_kind(path: Path) -> Path | None:
    """`rows.jsonl` in the folder of a missing `rows.json`."""
    try:
        same = sorted(other for other in path.parent.iterdir() if other.stem == path.stem and other.is_file())
    except OSError:
        return None
    return same[0] if path.suffix and same else None


class MissingFile(DataError):
    """A file of a source that is not there.

    A source raises it as `MissingFile(path)`; who knows the setting that named the file, `data.train`, adds it.

    Args:
        path: of the file.
        advice: the action where no file has nearly that name.
        setting: dotted path of the setting.
    """

    def __init__(self, path: Path, *, advice: str = "check the path", setting: str = "") -> None:
        problem, action = no_such_file(path, advice=advice)
        super().__init__(setting, problem, action=action)
        self.path, self.advice, self.setting = path, advice, setting

    def of(self, setting: str) -> MissingFile:
        """The same with the setting that named the file, unless it is known already."""
        return self if self.setting else MissingFile(self.path, advice=self.advice, setting=setting)
