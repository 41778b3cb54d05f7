"""Imports the builder of an entry, a class or a function, finds its options model, and calls it."""

from __future__ import annotations

import gc
import inspect
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from finetooth_hooks.entries import Attention, Entry
from finetooth_hooks.errors import FinetoothError, PluginError
from finetooth_toolbox.blame import error_line, where

from finetooth_core.plugins.versions import remedy

if TYPE_CHECKING:
    from finetooth_hooks.context import Registered
    from finetooth_hooks.options import Options


def load_builder(entry: Entry, distribution: str = "") -> Callable[..., Any]:
    """Import the builder in the entry's `build` (`"package.module:name"`).

    Args:
        distribution: named in errors.

    Raises:
        PluginError: the module cannot be imported, or has no such class or function.
    """
    module_name, _, attribute = entry.build.partition(":")
    blame = distribution or module_name
    what = f"{entry.kind} {entry.name!r}"
    try:
        with _collecting_paused():
            module = import_module(module_name)
    except Exception as error:
        raise import_failure(error, what, blame) from error
    function = getattr(module, attribute, None) if attribute else None
    if not callable(function):
        problem = f"{what} names its builder {entry.build!r}, but {module_name} has no such class or function"
        raise PluginError(blame, problem, action="report it to the plugin's author")
    return typing.cast(Callable[..., Any], function)


def built(registered: Registered, options: Options, context: Any) -> Any:
    """Call the builder of an entry. It gets those of `options` and `context` that it has parameters for.

    Raises:
        PluginError: a library is missing or broken, or the built object is not of the entry's kind.
    """
    builder, kind = load_builder(registered.entry, registered.distribution), registered.entry.kind
    offered = {"options": options, "context": context}
    wanted = inspect.signature(builder).parameters
    try:
        return derived(builder(**{name: offered[name] for name in offered if name in wanted}), kind, registered)
    except Exception as error:
        if isinstance(error, FinetoothError) or not (isinstance(error, ImportError) or _of_an_import(error)):
            raise
        raise import_failure(error, f"{kind} {registered.entry.name!r}", registered.distribution) from error


def options_model(entry: Entry, distribution: str = "") -> type[Options]:
    """The options model of an entry: the annotation of its builder's parameter `options`; without it, `NoOptions`.

    Only this annotation is evaluated, so a builder may import its other types only for the type checker.

    Args:
        distribution: named in errors.

    Raises:
        PluginError: the builder cannot be imported, needs a parameter of another name, or its annotation is not a
            subclass of `Options`.
    """
    from finetooth_hooks.options import NoOptions, Options

    builder = load_builder(entry, distribution)
    blame = distribution or entry.build
    what = f"the builder of {entry.kind} {entry.name!r}"
    author = "give it (options: MyOptions, context: Context), one of the two or none"
    parameters = inspect.signature(builder).parameters
    if more := [key for key, of in parameters.items() if of.default is of.empty and key not in ("options", "context")]:
        raise PluginError(blame, f"{what} needs {more[0]!r}, which nobody gives", action=author)
    annotation = parameters["options"].annotation if "options" in parameters else NoOptions
    if annotation is inspect.Parameter.empty:
        raise PluginError(blame, f"{what} does not annotate 'options'", action=author)
    function = inspect.unwrap(builder.__init__ if isinstance(builder, type) else builder)  # type: ignore[misc]
    holder = SimpleNamespace(__annotations__={"options": annotation})
    try:
        model = typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}))["options"]
    except NameError as error:
        problem = f"the options annotation of {entry.kind} {entry.name!r} cannot be resolved: {error}"
        raise PluginError(blame, problem, action="import the model at run time, not under TYPE_CHECKING") from error
    if not (isinstance(model, type) and issubclass(model, Options)):
        problem = f"the options of {entry.kind} {entry.name!r} are {model!r}, not a subclass of finetooth_hooks.Options"
        raise PluginError(blame, problem, action="derive the model from finetooth_hooks.Options")
    return model


def derived(built: Any, kind: str, registered: Registered) -> Any:
    """Check that a builder's result has every method and property of its contract, and return it.

    Its methods are wrapped in checks of their own results.

    Raises:
        PluginError: the result does not derive from the base class of its kind, or is a reward that cannot be called.
    """
    from finetooth_hooks.bases import BASES

    if kind == "reward":
        from finetooth_guards.checked_reward import CheckedReward

        if not callable(built):
            raise PluginError(
                registered.distribution,
                f"reward {registered.entry.name!r} is a {type(built).__name__}, which cannot be called",
                action="return a function reward(prompts, completions, columns), or an object with __call__",
            )
        return CheckedReward(built, registered)

    base = BASES.get(kind)
    if base is not None and not isinstance(built, base):
        who = f"{registered.entry.kind} {registered.entry.name!r}"
        what = "" if kind == registered.entry.kind else f"the {kind} of "
        builder = load_builder(registered.entry, registered.distribution)
        raise PluginError(
            registered.distribution,
            f"{what}{who} is a {type(built).__name__}, not a {base.__name__}{where(builder)}",
            action=f"derive it from finetooth_hooks.{base.__name__}",
        )
    from finetooth_guards.returned import METHODS, checked

    entry = registered.entry
    elsewhere = isinstance(entry, Attention) and entry.transformers  # then its builder returns no function
    methods = {} if elsewhere else METHODS.get(kind, {})
    return checked(built, methods, registered)


@contextmanager
def _collecting_paused() -> Iterator[None]:
    """Pause garbage collection during imports: their objects stay, and the search takes a tenth of the time of a large
    import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _of_an_import(error: BaseException) -> bool:
    """Whether a module raised it while it was imported."""
    return any(frame.f_code.co_name == "<module>" for frame, _ in traceback.walk_tb(error.__traceback__))


def import_failure(error: Exception, what: str, distribution: str) -> PluginError:
    """A clear error for an import that failed inside a plugin. Libraries for GPUs also raise RuntimeError, OSError or
    AttributeError, if a driver is missing or another library has another version.

    Args:
        what: the entry that needed the import, `loss 'x'`.
        distribution: the plugin at fault.
    """
    text, lacks = error_line(error, importing=True), ""
    action = "repair the library that raised it; --debug shows the whole traceback"
    if isinstance(error, ImportError):
        text, (lacks, action) = " ".join(str(error).split()), remedy(error, distribution)
        action = action or f"see what is broken: ft plugins doctor {distribution}"
    return PluginError(distribution, f"{what} cannot be imported: {text}{lacks}", action=action)
