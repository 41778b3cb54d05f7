"""Which plugin an exception came out of: the one whose code its traceback was in last, whatever kind of thing it is.

The table of whose code lies where is of the process, as `sys.modules` is: a plugin that was loaded once can raise
through anybody.
"""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any, Protocol

from finetooth_hooks.errors import FinetoothError

MEND = "fix it, or report it to the plugin's author; --debug shows the whole traceback"
BUG = "a bug; --debug shows where"
DISK = "check the disk and the rights of that file"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What writing raises without a word of which file it was."""

_owners: dict[str, str] = {}
"""Label of a plugin by the module that its entry point names: the whole package around it is its own."""
_builders: dict[str, str] = {}
"""Label of a plugin by a module that one of its entries names: the module may lie in a package of somebody else."""


_NOT_A_PLUGIN = ("/importlib/", "/finetooth_core/", "/finetooth_toolbox/")
"""Folders of frames that are never a plugin's own."""


class PluginInUse(Protocol):
    """What is remembered of a plugin."""

    @property
    def distribution(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def entries(self) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Blamed:
    """A plugin in a traceback.

    Attributes:
        plugin: distribution and version, or the local file or module as the user named it.
        where: `file:line` of the deepest frame in its code.
    """

    plugin: str
    where: str


def remember(loaded: Iterable[PluginInUse]) -> None:
    """Remember which plugins own which modules. Called whenever plugins come into use."""
    for plugin in loaded:
        label = f"{plugin.distribution} {plugin.version}".rstrip()
        _owners[plugin.module] = label
        for registered in plugin.entries:
            _builders.setdefault(registered.entry.build.partition(":")[0], label)


def blamed(error: BaseException) -> Blamed | None:
    """The plugin in whose code an exception was raised, or which called what raised it; else of what caused it; None if
    no plugin had to do with it."""
    places = _places()
    seen: BaseException | None = error.__cause__ if isinstance(error.__cause__, StopIteration) else error
    while seen is not None:
        deepest = None
        for file, line in _frames(seen.__traceback__):
            owner = max((place for place in places if _within(file, place)), key=len, default=None)
            deepest = deepest if owner is None else Blamed(places[owner], f"{file}:{line}")
        if deepest is not None:
            return deepest
        seen = seen.__cause__
    return None


def place_of(thing: Any) -> str:
    """`file:line` where a function, or the class of anything else, is written; empty for what was not written in
    Python."""
    while isinstance(thing, partial) or hasattr(thing, "__wrapped__"):
        thing = thing.func if isinstance(thing, partial) else thing.__wrapped__
    thing = getattr(thing, "__func__", thing)
    code = getattr(thing, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    made = thing if isinstance(thing, type) else type(thing)
    try:
        return f"{inspect.getsourcefile(made)}:{inspect.getsourcelines(made)[1]}"
    except (OSError, TypeError):
        return ""


def owner_of(thing: Any) -> str:
    """The plugin in whose code a function, or the class of anything else, is written; empty if no plugin wrote it."""
    file, places = place_of(thing).rpartition(":")[0].replace("\\", "/"), _places()
    owner = max((place for place in places if _within(file, place)), key=len, default=None)
    return places[owner] if owner else ""


def whose(thing: Any) -> str:
    """The beginning of a line that blames the author of a function or a class: `plugin acme-x 0.1.0: `, or nothing."""
    owner = owner_of(thing)
    return f"plugin {owner}: " if owner else ""


def where(thing: Any) -> str:
    """The end of such a line: ` [file:line]`, or nothing."""
    place = place_of(thing)
    return f" [{place}]" if place else ""


def with_article(noun: str) -> str:
    """The noun after `a`, or after `an` where it begins with a vowel: `an adapter`."""
    return f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def shown(value: Any) -> str:
    """A value of the wrong type, briefly: `a str, 'good',`."""
    if value is None:
        return "None,"
    text, kind = " ".join(repr(value).split()), type(value).__name__
    return f"{with_article(kind)}, {text if len(text) <= 60 else f'{text[:57]}...'},"


def reason_of(answer: Any, check: Any) -> str:
    """What a gate answered; a reason of ours where it answered no text, which would let everything pass.

    Args:
        check: what answered.
    """
    if isinstance(answer, str):
        return answer
    wanted = "not text: return '' to let a checkpoint pass, or why it must not count"
    return f"{whose(check)}check() returned {shown(answer)} {wanted}{where(check)}"


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an exception says that a file could not be read or written. Many an OSError says something else: that a
    server does not answer, for instance."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.errno in _FULL or (error.errno is not None and error.filename is not None)


def is_full(error: BaseException) -> bool:
    """Whether an exception, or what it came from, says that a disk has no room."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if f"(os error {errno.ENOSPC})" in str(cause):  # as libraries written in Rust say it
            return True
        cause = cause.__cause__
    return False


def problem(error: BaseException) -> tuple[str, str]:
    """What to say of an exception that nobody meant to raise: the problem with the plugin it came out of, and the next
    action."""
    plugin_frame = blamed(error)
    if isinstance(error, OSError) and is_of_the_disk(error):
        place = f"{error.filename}: " if error.filename else ""
        whose = f"; plugin {plugin_frame.plugin} wanted it [{plugin_frame.where}]" if plugin_frame else ""
        return f"{place}{error.strerror or error}", DISK + whose
    if plugin_frame is None:
        return describe(error), BUG
    return f"plugin {plugin_frame.plugin}: {describe(error)} [{plugin_frame.where}]", MEND


def line(error: BaseException) -> str:
    """`problem` in one line."""
    what, action = problem(error)
    return f"{what} ({action})"


def error_line(error: BaseException, *, importing: bool = False) -> str:
    """What a plugin that is known by name has raised, in one line: what it says to the user itself, or type, message
    and `[file:line]` of the deepest frame in a plugin's code.

    Args:
        importing: it was raised by an import, of a module that nobody may know as a plugin's.
    """
    if isinstance(error, FinetoothError):
        return " ".join(str(error).split())
    plugin_frame = blamed(error)
    where = plugin_frame.where if plugin_frame else origin(error) if importing else ""
    if isinstance(error, SyntaxError):
        where = origin(error)
    return f"{describe(error)} [{where}]" if where else describe(error)


def named(error: BaseException) -> str:
    """What a plugin's code has raised, in one line that names the plugin, unless it says to the user itself what to
    say."""
    return error_line(error) if isinstance(error, FinetoothError) else problem(error)[0]


def describe(error: BaseException) -> str:
    """Type and message of an exception, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def origin(error: BaseException, file: str = "") -> str:
    """`file:line` of the deepest frame in the plugin's own code: in the package of `file`, or of the first frame that
    is neither ours nor the import system's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    package, deepest = _package(file), ""
    for name, line in _frames(error.__traceback__):
        if name.startswith("<") or any(folder in name for folder in _NOT_A_PLUGIN):
            continue
        package = package or _package(name)
        if name.startswith(package):
            deepest = f"{name}:{line}"
    return deepest


def _package(file: str) -> str:
    """The folder of a module inside a package, the file itself of a top-level module."""
    folder = file.rpartition("/")[0]
    return file if folder in sys.path else folder and f"{folder}/"


def _places() -> Mapping[str, str]:
    """Labels by folder of a package (which ends with `/`) or by file, of the modules imported so far."""
    labels: dict[str, str] = {}
    for module, label in _owners.items():
        for name in accumulate(module.split("."), lambda package, part: f"{package}.{part}"):
            file = _file(name)
            if file:  # else it is a namespace that several distributions may share
                folder = file.removesuffix("__init__.py")
                labels[folder if folder.endswith("/") else file] = label
                break
    for module, label in _builders.items():
        labels.setdefault(_file(module), label)
    labels.pop("", None)
    return labels


def _file(module: str) -> str:
    return (getattr(sys.modules.get(module), "__file__", None) or "").replace("\\", "/")


def _within(file: str, place: str) -> bool:
    return file.startswith(place) if place.endswith("/") else file == place


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename.replace("\\", "/"), traceback.tb_lineno
        traceback = traceback.tb_next
