"""Records Python files of runs on this machine, so that foreign code in a run folder does not run without consent.

A recipe is a program: it may name Python files as plugins, reward functions, environments, and ask for a model's own
code. A user who starts a run from a recipe agrees to that. A foreign run folder names files too, and merging or
chatting with its model should not require trust in them. So a run on this machine writes the SHA-256 of its files to
the user's state folder, and files of a recorded recipe run only if their hash is there.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError

VARIABLE = "FT_TRUST_CODE"
"""If this variable is 1, code of any run folder may run, as with `--trust-code`."""
REMOTE = "trust_remote_code"
"""The option of a loader that runs a model's own code."""
CONSENT = "read it, then give consent with --trust-code"


def consented() -> bool:
    """Whether the user has allowed code of run folders."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def record_own(recipe: Mapping[str, Any], base: Path) -> None:
    """Remember the Python files of a recipe when its run begins on this machine.

    Args:
        base: folder that its paths are relative to.
    """
    from finetooth_toolbox.files.cache_folder import write_whole  # its imports would slow every start

    for name, path in named_python(recipe, base):
        with suppress(OSError):  # without a writable state folder, own runs need consent too
            write_whole(_mark(name, path), json.dumps({"named": name}).encode())
            if path is not None:
                write_whole(_place_mark(path), json.dumps({"named": name}).encode())


def foreign_python(recipe: Mapping[str, Any], base: Path) -> list[str]:
    """Python in a recipe that no run on this machine has named, in the recipe's spelling; empty with consent.

    Args:
        base: folder that its paths are relative to.
    """
    if consented():
        return []
    foreign = []
    for name, path in named_python(recipe, base):
        try:
            if not (_mark(name, path).is_file() or _is_own_place(path, base)):
                foreign.append(name)
        except OSError:  # an unreadable file cannot run
            continue
    return list(dict.fromkeys(foreign))


def check_own(recipe: Mapping[str, Any], base: Path, where: str) -> None:
    """Checks that the user agrees to the Python code that a recipe names.

    Args:
        base: folder that its paths are relative to.
        where: the owner of the recipe, for the message.

    Raises:
        UserError: the recipe names Python that no run of this machine has named, and consent is missing.
    """
    if foreign := foreign_python(recipe, base):
        raise UserError(
            f"{where} names Python that no run of this machine has used, and that would run: {', '.join(foreign)}",
            action=CONSENT,
        )


def without_foreign(recipe: Mapping[str, Any], base: Path) -> tuple[dict[str, Any], list[str]]:
    """A recorded recipe whose foreign Python cannot run, for uses that need none of it.

    Returns:
        The recipe: foreign plugin files are left out, other foreign files become missing paths, and models cannot run
        their own code; and the removed values in the recipe's spelling.
    """
    foreign = foreign_python(recipe, base)
    if not foreign:
        return dict(recipe), []

    def disarmed(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: disarmed(content, str(name)) for name, content in value.items()}
        if isinstance(value, list | tuple):
            return [disarmed(content) for content in value]
        if key == REMOTE:
            return False
        return f"{value} [not run: {CONSENT}]" if isinstance(value, str) and value in foreign else value

    plugins = [item for item in recipe.get("plugins", ()) if _use(item) not in foreign]
    rest = {name: value for name, value in recipe.items() if name != "plugins"}
    return {**disarmed(rest), **({"plugins": plugins} if plugins else {})}, foreign


def named_python(recipe: Mapping[str, Any], base: Path) -> Iterator[tuple[str, Path | None]]:
    """Python files anywhere in a recipe, each with its possible paths: relative ones start at the recipe's folder or
    the current one. Models that run their own code have no path."""

    def walk(value: Any, key: str, model: str) -> Iterator[tuple[str, Path | None]]:
        if isinstance(value, Mapping):
            named = str(value.get("name", model)) if isinstance(value.get("name", model), str) else model
            for name, content in value.items():
                yield from walk(content, str(name), named)
        elif isinstance(value, list | tuple):
            for content in value:
                yield from walk(content, "", model)
        elif key == REMOTE and value:
            yield f"{REMOTE} of {model}", None
        elif isinstance(value, str):
            for end in re.finditer(r"\.py(?=:|\s*$)", value):
                place = Path(value[: end.end()].strip()).expanduser()
                for path in dict.fromkeys((base / place, place.absolute())):
                    yield value, path

    yield from walk(recipe, "", "")


def _use(item: Any) -> str:
    return str(item.get("use", "") if isinstance(item, Mapping) else item)


def _mark(name: str, path: Path | None) -> Path:
    """The marker of a file that a run on this machine has named.

    Raises:
        OSError: the file cannot be read.
    """
    content = name.encode("utf-8", "surrogatepass") if path is None else path.read_bytes()
    return state_folder() / "own-python" / _sha256(content)


def _is_own_place(path: Path | None, base: Path) -> bool:
    """Whether a run on this machine has named this path, with any content: an own plugin that changed after a run needs
    no consent. For a file inside the recipe's folder the content counts, since it came with that folder."""
    return path is not None and not path.resolve().is_relative_to(base.resolve()) and _place_mark(path).is_file()


def _place_mark(path: Path) -> Path:
    """The marker of a path that a run on this machine has named."""
    place = str(path.resolve()).encode("utf-8", "surrogatepass")
    return state_folder() / "own-python" / f"at-{_sha256(place)}"


def state_folder() -> Path:
    """`finetooth` in the platform's folder for programs' state."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "finetooth"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "finetooth"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "finetooth"


def _sha256(content: bytes) -> str:
    import hashlib  # it would slow every start

    return hashlib.sha256(content).hexdigest()
