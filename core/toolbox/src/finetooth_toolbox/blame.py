"""Finds the plugin behind an exception of any kind: the one with the deepest frame in the traceback.

The table of plugins and their modules belongs to the process, like `sys.modules`: a loaded plugin can raise through any
code.
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
"""Errors of writing that do not name the file."""

_owners: dict[str, str] = {}
"""Label of a plugin by the module that its entry point names: the whole package around it belongs to the plugin."""
_builders: dict[str, str] = {}
"""Label of a plugin by a module that one of its entries names: the module may be in another author's package."""


_NOT_A_PLUGIN = ("/importlib/", "/finetooth_core/", "/finetooth_toolbox/")
"""Folders of frames that never belong to a plugin."""


class PluginInUse(Protocol):
    """The facts about a plugin that are remembered."""

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
    """Remember the modules of plugins. Called whenever plugins are loaded."""
    for plugin in loaded:
        label = f"{plugin.distribution} {plugin.version}".rstrip()
        _owners[plugin.module] = label
        for registered in plugin.entries:
            _builders.setdefault(registered.entry.build.partition(":")[0], label)


def blamed(error: BaseException) -> Blamed | None:
    """The plugin whose code raised an exception, or called the code that raised it; else the plugin behind its cause;
    None if no plugin was involved."""
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
    """`file:line` of a function, or of the class of another object; empty for code that is not Python."""
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
    """The plugin that defines a function, or the class of another object; empty if no plugin does."""
    file, places = place_of(thing).rpartition(":")[0].replace("\\", "/"), _places()
    owner = max((place for place in places if _within(file, place)), key=len, default=None)
    return places[owner] if owner else ""


def whose(thing: Any) -> str:
    """The beginning of an error line about a plugin's function or class: `plugin acme-x 0.1.0: `, or empty."""
    owner = owner_of(thing)
    return f"plugin {owner}: " if owner else ""


def where(thing: Any) -> str:
    """The end of such a line: ` [file:line]`, or empty."""
    place = place_of(thing)
    return f" [{place}]" if place else ""


def with_article(noun: str) -> str:
    """The noun with `a`, or with `an` before a vowel: `an adapter`."""
    return f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def shown(value: Any) -> str:
    """A short description of a value of the wrong type: `a str, 'good',`."""
    if value is None:
        return "None,"
    text, kind = " ".join(repr(value).split()), type(value).__name__
    return f"{with_article(kind)}, {text if len(text) <= 60 else f'{text[:57]}...'},"


def reason_of(answer: Any, check: Any) -> str:
    """A gate's answer. If it is not a text, which would otherwise pass everything, the result is a refusal about that.

    Args:
        check: the gate.
    """
    if isinstance(answer, str):
        return answer
    wanted = "not text: return '' to let a checkpoint pass, or why it must not count"
    return f"{whose(check)}check() returned {shown(answer)} {wanted}{where(check)}"


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an exception is about reading or writing a file. An OSError may also be about something else, such as a
    server that does not answer."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.errno in _FULL or (error.errno is not None and error.filename is not None)


def is_full(error: BaseException) -> bool:
    """Whether an exception or its cause is about a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if f"(os error {errno.ENOSPC})" in str(cause):  # as in messages of libraries written in Rust
            return True
        cause = cause.__cause__
    return False


def problem(error: BaseException) -> tuple[str, str]:
    """Problem and action of an unexpected exception; the problem names the plugin behind it."""
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
    """One line for an exception of a plugin that the caller names: the message of an error for the user, or type,
    message and `[file:line]` of the deepest frame in a plugin's code.

    Args:
        importing: an import raised it, so its module may not be known as a plugin's.
    """
    if isinstance(error, FinetoothError):
        return " ".join(str(error).split())
    plugin_frame = blamed(error)
    where = plugin_frame.where if plugin_frame else origin(error) if importing else ""
    if isinstance(error, SyntaxError):
        where = origin(error)
    return f"{describe(error)} [{where}]" if where else describe(error)


def named(error: BaseException) -> str:
    """One line for an exception from a plugin's code. It names the plugin, unless the exception is an error for the
    user."""
    return error_line(error) if isinstance(error, FinetoothError) else problem(error)[0]


def describe(error: BaseException) -> str:
    """Type and message of an exception, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def origin(error: BaseException, file: str = "") -> str:
    """`file:line` of the deepest frame in the plugin's own code: in the package of `file`, or of the first frame that
    belongs neither to finetooth nor to the import system."""
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
            if file:  # otherwise a namespace package, which several distributions may share
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
