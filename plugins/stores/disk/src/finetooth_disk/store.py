"""Checkpoints as folders in a folder: written under a hidden name, flushed, compared, and renamed into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetooth_hooks import Context, Options, RecipeError, StoreError
from finetooth_toolbox.files.manifests import (
    MANIFEST,
    ManifestProblem,
    check_folder,
    check_name,
    folder_files,
    is_name,
    listed_files,
    read_manifest,
)

from finetooth_disk.staging import ABANDONED, Staging, flush, sweep

FOLDER = "checkpoints"
"""Where checkpoints lie in the run folder."""


class DiskOptions(Options):
    """Options of the store `disk`."""

    path: str = ""
    """The folder, created when the first checkpoint is saved. Empty: `checkpoints` in the run folder."""
    url: str = ""
    """The same as `path`, for a path in `checkpoint.stores`; `file:///folder` works too."""
    link: bool = True
    """Whether to hard-link files on the same file system instead of copying them. They then take no extra space, but
    damage to one is damage to both."""


class DiskStore:
    """`checkpoints.Store` over a folder.

    Args:
        root: the folder.
        link: hard-link files of the same file system.
    """

    def __init__(self, root: Path, *, link: bool = True) -> None:
        self._root = root
        self._link = link

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._root)

    def names(self) -> list[str]:
        """Folders with a manifest; hidden ones, links and other names do not count as checkpoints."""
        with self._errors("it cannot be read"):
            if not self._root.exists():
                return []
            return [path.name for path in self._root.iterdir() if is_name(path.name) and _is_kept(path)]

    def manifest(self, name: str) -> bytes:
        """The content of its `manifest.json`.

        Raises:
            StoreError: no checkpoint has this name.
        """
        self._check_name(name)
        with self._errors(f"no checkpoint {name}"):
            return read_manifest(self._of(name))

    def put(self, name: str, folder: Path) -> None:
        """Keep a copy of a folder. One that lies in the store's own folder already is not copied but renamed.

        Raises:
            StoreError: the folder is not as its manifest says, there is another checkpoint of this name, or the disk is
                full or not writable.
        """
        self._check_name(name)
        with self._errors(f"{name} cannot be kept", full="make room, or choose another place in checkpoint.stores"):
            self._root.mkdir(parents=True, exist_ok=True)
            sweep(self._root)
            if self._is_there(name, folder):
                return
            if self._is_staged(folder):
                check_folder(folder, remembered=True)  # it is renamed as it lies
                _flush_all(folder)
                self._move(folder, name)
                return
            with Staging(self._root, name) as staging:
                self._copy(folder, staging)
                check_folder(staging)
                _flush_all(staging)
                self._move(staging, name)

    def fetch(self, name: str, folder: Path) -> None:
        """Copy the files that the manifest lists into `folder`, the manifest last.

        Raises:
            StoreError: it is missing, a file is missing or not a plain file, or `folder` cannot be written.
        """
        self._check_name(name)
        with self._errors(f"{name} cannot be read", damaged="use another checkpoint"):
            manifest = read_manifest(self._of(name))
            for path in listed_files(manifest):
                source, target = self._of(name) / path, folder / path
                if not source.is_file() or _through_link(self._of(name), path):
                    raise ManifestProblem(f"{path} is missing")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            (folder / MANIFEST).write_bytes(manifest)

    def remove(self, name: str) -> None:
        """Take it out of sight in one rename, then delete its files.

        Raises:
            StoreError: the disk is not writable.
        """
        self._check_name(name)
        with self._errors(f"{name} cannot be removed"):
            place = self._of(name)
            if not place.is_dir() or place.is_symlink():
                return
            abandoned = self._root / f"{ABANDONED}{name}.{os.urandom(6).hex()}"
            place.rename(abandoned)
            flush(self._root)
            shutil.rmtree(abandoned)

    def _of(self, name: str) -> Path:
        return self._root / name

    def _check_name(self, name: str) -> None:
        try:
            check_name(name)
        except ManifestProblem as error:
            raise StoreError(self.place, str(error)) from error

    def _is_there(self, name: str, folder: Path) -> bool:
        """Whether the same checkpoint is kept and whole; one that is damaged is taken out of the way.

        Raises:
            ManifestProblem: another one is kept under this name, or what is there is none.
        """
        place = self._of(name)
        if not (place.exists() or place.is_symlink()):
            return False
        if not _is_kept(place):
            raise ManifestProblem(f"{place} is in the way and no checkpoint; move it away")
        if read_manifest(place) != read_manifest(folder):
            raise ManifestProblem("another checkpoint of this name is kept; remove that one first")
        try:
            check_folder(place)
        except ManifestProblem:
            check_folder(folder)  # nothing goes before what takes its place is known to be whole
            self.remove(name)
            return False
        return True

    def _is_staged(self, folder: Path) -> bool:
        """Whether it is still under the hidden name of an unfinished write."""
        beside = folder.resolve().parent == self._root.resolve()
        return beside and folder.name.startswith(".") and not folder.is_symlink()

    def _copy(self, folder: Path, staging: Path) -> None:
        manifest = read_manifest(folder)
        listed_files(manifest)
        for path, source in folder_files(folder).items():
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (self._link and _linked(source, target)):
                shutil.copyfile(source, target, follow_symlinks=False)
        (staging / MANIFEST).write_bytes(manifest)

    def _move(self, folder: Path, name: str) -> None:
        folder.chmod(0o755)  # a temporary folder is private; a checkpoint is as public as its parent
        folder.rename(self._of(name))
        flush(self._root)

    @contextmanager
    def _errors(self, problem: str, *, full: str = "", damaged: str = "") -> Iterator[None]:
        """Turn what goes wrong into a StoreError that names the folder.

        Args:
            full: what to do where the system refuses.
            damaged: what to do where files are not as they should be.
        """
        try:
            yield
        except ManifestProblem as error:
            raise StoreError(self.place, f"{problem}: {error}", action=damaged) from error
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(self.place, f"{problem}: {reason}", action=full) from error


def _is_kept(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / MANIFEST).is_file()


def _through_link(folder: Path, path: str) -> bool:
    """Whether a file is a link or lies behind one."""
    parts = path.split("/")
    return any(folder.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts)))


def _linked(source: Path, target: Path) -> bool:
    """Hard-link if the file systems allow it."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without links: a copy does as well
        return False
    return True


def _flush_all(folder: Path) -> None:
    """Files first, the manifest after them, then folders from the inside out."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == MANIFEST)
    folders = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    for path in (*files, *folders, folder):
        flush(path)


def build(options: DiskOptions, context: Context) -> DiskStore:
    """Builder of the store `disk`.

    Raises:
        RecipeError: both `path` and `url` are given, the URL names another machine, or a file is in the way.
    """
    if options.path and options.url:
        raise RecipeError("checkpoint.stores", "disk has both `path` and `url`", action="give one of them")
    location = options.path or options.url
    if location.startswith("file://"):
        location = location.removeprefix("file://").removeprefix("localhost")
        if not location.startswith("/"):
            raise RecipeError(
                "checkpoint.stores", f"file://{location} is not a folder here", action="write file:///FOLDER"
            )
    root = (Path(location).expanduser() if location else context.folder / FOLDER).absolute()
    there = next(filter(os.path.exists, (root, *root.parents)), root)
    if location and there.is_file():  # nothing of a run could be kept
        raise RecipeError("checkpoint.stores", f"{there} is a file, not a folder", action="choose another path")
    return DiskStore(root, link=options.link)
