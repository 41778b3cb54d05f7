"""The error for a missing file: one wording, and the name that the user probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetooth_hooks.errors import DataError

from finetooth_toolbox.text.nearest import nearest_path


def or_moved(action: str, model: str) -> str:
    """The action for a missing model, including a base that was moved after a run recorded its absolute path."""
    moved = "a run's base that was moved: model=NEW, or model: NEW in the run's recipe.yaml"
    return f"{action}; {moved}" if Path(model).is_absolute() else action


def no_such_file(path: Path | str, *, advice: str = "check the path", endings: Sequence[str] = ()) -> tuple[str, str]:
    """Problem and action for a missing path: `no such file: trian.jsonl` and `did you mean train.jsonl?`. Without a
    file of a similar name, the problem names the start folder of a relative path.

    Args:
        advice: the action without a file of a similar name.
        endings: endings of suggested files; default is that of `path`.
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
    """A missing file of a source.

    A source raises it as `MissingFile(path)`; a caller that knows the setting with the file, `data.train`, adds it.

    Args:
        path: of the file.
        advice: the action without a file of a similar name.
        setting: dotted path of the setting.
    """

    def __init__(self, path: Path, *, advice: str = "check the path", setting: str = "") -> None:
        problem, action = no_such_file(path, advice=advice)
        super().__init__(setting, problem, action=action)
        self.path, self.advice, self.setting = path, advice, setting

    def of(self, setting: str) -> MissingFile:
        """The same error with the setting that named the file, unless it has one."""
        return self if self.setting else MissingFile(self.path, advice=self.advice, setting=setting)
