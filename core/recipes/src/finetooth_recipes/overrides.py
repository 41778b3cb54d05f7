"""Overrides: `key.path=value` on the command line changes one setting of a recipe.

* The value is read as in a recipe: `train.batch_size=4`, `optimizer.learning_rate=2e-4`, `data.eval=null`,
  `trackers=[a, b]`, `method={name: x, beta: 0.1}`, `output="7"`. Text that does not start with a quote or a bracket is
  taken whole, so `#`, `: ` and `*` mean nothing special in it.
* `key=` is an error: `key=null` unsets, `key=''` gives an empty text.
* A number in the path is the index of a list item; the index after the last appends. A plugin may also be named:
  `plugins.score_gate.py.options.min_score=0.3`, as messages spell it.
* A path into a section that only names its pick makes a mapping of it: `adapter: x` with `adapter.rank=8` becomes
  `adapter: {name: x, rank: 8}`; a pick that the recipe leaves open keeps its choice: `{name: auto, rank: 8}`.
* A name of another tool that is read as a setting (`num_train_epochs=3`) replaces that setting.
* Overrides apply from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from finetooth_hooks.errors import RecipeError
from finetooth_hooks.plan import Pick

from finetooth_recipes.aliases import ALIASES
from finetooth_recipes.yaml_text import plain, read_yaml

DEFAULTED = frozenset({"method", "adapter", "optimizer", "schedule", "backend"})
"""Picks whose `auto` is the default entry of the kind, so that `{name: auto, ...}` may give it options."""

_LISTS = frozenset({"trackers", "export", "evaluate.evaluators", "plugins"})
_WHOLE = re.compile(r"[^=]+=.")
_APART = re.compile(r"([\w.-]+)(?:\0=\0|=\0|\0=|\0)([^\0=]+)(?=\0|$)")
_REFERENCES = ("data.train", "data.eval")


def apply_overrides(recipe: dict[str, Any], overrides: Sequence[str], plugins: Sequence[str] = ()) -> None:
    """Change `recipe` in place.

    Args:
        plugins: those of `--plugins`. They follow the recipe's before the overrides apply, so that overrides can give
            them options, and an override that replaces the list cannot take them out.

    Raises:
        RecipeError: an override has no `=`, a space around it, no value, or a path that leads nowhere.
    """
    _name_plugins(recipe, plugins)
    for index, override in enumerate(overrides):
        _check_spaces(overrides[index : index + 3])
        keys, value = parse_override(override)
        _assign(recipe, _in_place(recipe, keys), value)
    _name_plugins(recipe, plugins)


def _check_spaces(words: Sequence[str]) -> None:
    """Refuse `key.path VALUE` and `key.path = VALUE`, which a shell hands over as words of their own."""
    if _WHOLE.match(words[0]) or _is_file(words[0]):
        return
    apart = _APART.match("\0".join([*(words[0].split(None, 1) or [""]), *words[1:]]))
    if apart is not None:
        action = f"write {quote(f'{apart[1]}={apart[2]}')}, without a space"
        raise RecipeError("", f"{words[0]!r} is not an override", action=action)


def _is_file(word: str) -> bool:
    with suppress(OSError):  # too long for the name of one
        return Path(word).is_file()
    return False


def _name_plugins(recipe: dict[str, Any], plugins: Sequence[str]) -> None:
    """Add plugins to those that the recipe names. A file stands in for one of the same name that has moved."""
    items = recipe.get("plugins") or []
    for plugin in plugins if isinstance(items, list) else ():
        uses = [item.get("use") if isinstance(item, dict) else item for item in items]
        moved = [index for index, use in enumerate(uses) if _has_moved(use, plugin)]
        if plugin not in uses and moved:
            item = items[moved[0]]
            items[moved[0]] = {**item, "use": plugin} if isinstance(item, dict) else plugin
        elif plugin not in uses:
            items.append(plugin)
        recipe["plugins"] = items


def _has_moved(use: Any, plugin: str) -> bool:
    """Whether a plugin file that a recipe names by its whole path is not there, and `plugin` has its name."""
    old, new = Path(str(use)), Path(plugin)
    return old.is_absolute() and old.name == new.name and new.is_file() and not old.exists()


def _in_place(recipe: dict[str, Any], keys: list[str]) -> list[str]:
    """The path of an override; replaces a setting that the recipe has under another name (see `aliases`)."""
    setting = ALIASES.get(".".join(keys), tuple(keys))
    for name, other in ALIASES.items():
        if other == setting and name != keys[0]:
            recipe.pop(name, None)
    holder: Any = recipe
    for key in setting:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return keys if holder is None else list(setting)


def absolute_files(plugins: Sequence[str]) -> list[str]:
    """Plugins with the paths of local files made absolute."""
    return [str(Path(name).expanduser().absolute()) if name.endswith(".py") else name for name in plugins]


def parse_override(override: str) -> tuple[list[str], Any]:
    """Split `a.b=value` into the keys of its path and its value."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals:
        example = f"data.train={override}" if _is_file(override) else "train.seed=1"
        raise RecipeError("", f"{override!r} is not an override", action=f"write key.path=value, such as {example}")
    name, named, option = path.removeprefix("plugins.").partition(".options.")
    of_plugin = bool(named) and path.startswith("plugins.")  # the name of a file holds dots
    keys = ["plugins", name, "options", *option.split(".")] if of_plugin else path.split(".")
    if not all(keys):
        raise RecipeError("", f"{override!r} has an empty key in its path", action="write key.path=value")
    text = text.strip()
    if not text:
        raise RecipeError(
            path, "the override has no value", action=f"write {path}=null to unset it, {path}='' for an empty text"
        )
    if text[0] in "[{\"'!":
        return keys, read_yaml(text, f"override {path}").value
    return keys, plain(text)


def picked(name: str, options: Sequence[str]) -> Pick:
    """An entry picked on a command line, by its name and `KEY=VALUE`.

    Raises:
        RecipeError: an option is not a `KEY=VALUE` pair.
    """
    source, colon, bare = name.rpartition(":")
    name = source + colon + bare.replace("-", "_")  # the spelling on a command line
    values: dict[str, Any] = {}
    for option in options:
        keys, value = parse_override(option)
        if len(keys) != 1 or keys[0] == "name":
            raise RecipeError("", f"{option!r} is not an option of an entry", action="write key=value")
        values[keys[0]] = value
    return {"name": name, **values} if values else name


def _assign(recipe: dict[str, Any], keys: list[str], value: Any) -> None:
    """Follow the keys to the holder of the last one, turn names on the path into mappings, and set the value there."""
    holder: Any = recipe
    for depth, key in enumerate(keys[:-1]):
        holder = _enter(holder, key, keys[: depth + 1])
    where = ".".join(keys)
    if isinstance(holder, list):
        index = _index(holder, keys[-1], where, append=True)
        holder[index : index + 1] = [value]
    else:
        holder[keys[-1]] = value


def _enter(holder: Any, key: str, path: list[str]) -> Any:
    """The mapping or list under `key`, made if it is missing."""
    where = ".".join(path)
    slot: Any = _index(holder, key, where, append=False) if isinstance(holder, list) else key
    current = holder[slot] if isinstance(holder, list) else holder.get(slot)
    if isinstance(current, (dict, list)):
        return current
    if current is None:
        made: Any = [] if where in _LISTS else {"name": "auto"} if where in DEFAULTED else {}
    elif isinstance(current, str):
        made = _promoted(current, path, where)
    else:
        raise RecipeError(where, f"is {current!r}, so it has no setting below it", action=f"write {where}=value")
    holder[slot] = made
    return made


def _promoted(name: str, path: list[str], where: str) -> dict[str, Any]:
    """A name as the mapping that picks it."""
    if where.startswith(_REFERENCES):
        raise RecipeError(
            where,
            f"is the reference {name!r}, which takes no options",
            action=f"pick the source by name: {where}={{name: SOURCE, path: {name}, ...}}",
        )
    if path[0] == "plugins" and len(path) == 2:
        return {"use": name}
    if where in _LISTS:
        raise RecipeError(where, f"is {name!r}, not a list", action=f"write {where}=[NAME, ...]")
    return {"name": name}


def _index(items: list[Any], key: str, where: str, *, append: bool) -> int:
    """A list index; one past the end only where a value is set."""
    if not key.isascii() or not key.isdigit():
        if where == f"plugins.{key}":
            return _plugin_index(items, key, where)
        raise RecipeError(
            where, f"{key!r} is not an index into a list of {len(items)}", action="write a number, 0 is the first"
        )
    index = int(key) if len(key) < 10 else len(items) + 1
    if index > len(items) or (index == len(items) and not append):
        raise RecipeError(where, f"the list has only {len(items)} items", action="0 is the first")
    return index


def _plugin_index(items: list[Any], name: str, where: str) -> int:
    """The index of the plugin with this name: a file, a module, or a distribution without its version."""
    uses = [str(item.get("use") if isinstance(item, dict) else item).strip() for item in items]
    names = [use.removeprefix("./") if use.endswith(".py") else re.split(r"[<>=!~\[; ]", use)[0] for use in uses]
    same = [index for index, use in enumerate(names) if use == name or use.endswith(f"/{name}")]
    if len(same) > 1:
        raise RecipeError(where, "two plugins have this name", action="write the index instead, 0 is the first")
    if not same:
        known = f"; NAME is {' or '.join(names)}" if names else " and add --plugins NAME"
        action = f"write plugins.NAME.options.OPTION=VALUE{known}"
        raise RecipeError(where, "the run names no such plugin", action=action)
    return same[0]
