"""The sections of a recipe that a client may write for its own model, and their check before anything is built."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from finetooth_hooks import UserError
from finetooth_toolbox.text.nearest import nearest
from finetooth_wire import wire

from finetooth_server.faults import Unknown

SECTIONS = frozenset({"adapter", "optimizer", "schedule", "train"})
"""Sections of a recipe that a client may write for its own model."""

FRESH = ("optimizer", "schedule", "train")
"""Sections that a model may change if it starts from a checkpoint's weights only."""

TRAIN = frozenset({"seed", "max_grad_norm", "max_steps", "max_length"})
"""Settings of `train` that a client may write; the server sets the others."""

STRATEGY = "strategy"
"""The key that spreads a model over devices."""

STEPWISE: Mapping[str, Any] = {
    "ddp": "ddp",
    "fsdp-hybrid": {"name": "fsdp", "replicas": 2},
    "zero-1": {"name": "deepspeed", "stage": 1},
    "zero-2": {"name": "deepspeed", "stage": 2},
}
"""Strategies with access to gradients between two calls, and their `scale.strategy`: they shard optimizer state and
gradients, or parameters only within a replica."""

REFUSED = ("zero-3", "fsdp-full")
"""Strategies without: every parameter is divided among all ranks, and whole only inside a forward or backward."""

MOST = 1024
"""Most texts and numbers of a section: each adds to the time of building the model, which others wait for."""

_ABOUT = 16 * 1024

_NAME = re.compile(r"[A-Za-z0-9_-]{0,128}([.:][A-Za-z0-9_-]{1,128}){0,32}")


def merged(served: Mapping[str, Mapping[str, Any]], base: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a base model with a client's own sections on top.

    Args:
        served: recipe by name of each base model.

    Raises:
        Unknown: the base model is not served.
        UserError: a client may not write a section or setting.
    """
    if base not in served:
        raise Unknown(f"no base model {base!r} is served here", action=f"choose among {all_of(served)}")
    recipe = dict(served[base])
    for name, section in sections.items():
        if section is None:
            continue
        if name not in SECTIONS:
            raise UserError(f"{name}: not a section that a client writes", action=f"it writes {all_of(SECTIONS)}")
        if _count(section) > MOST:
            raise UserError(f"{name}: more than {MOST} names and numbers", action="send fewer")
        if name == "train":
            for setting in sorted(set(wire.mapping(section, "train")) - TRAIN):
                raise UserError(f"train.{setting}: the server's to choose", action=f"a client writes {all_of(TRAIN)}")
            recipe["train"] = {**recipe.get("train", {}), **section}
        else:
            _check_plain(section, name)
            recipe[name] = section
    return recipe


def continued(
    base: str, recipe: Mapping[str, Any], asked: str, sections: Mapping[str, Any], *, fresh: bool
) -> dict[str, Any]:
    """The recipe of a model that begins with a checkpoint: that of the checkpoint.

    Args:
        base, recipe: of the checkpoint.
        asked: the client's base; may be empty.
        sections: the client's.
        fresh: only the weights are loaded, so `FRESH` may change.

    Raises:
        UserError: the client names another base, or a section that the checkpoint would replace.
    """
    if asked and asked != base:
        raise UserError(f"base: the checkpoint was made on {base}, not {asked}", action=f"name {base}, or leave it out")
    own = {name: section for name, section in sections.items() if fresh and name in FRESH}
    for name in sections.keys() - own.keys() - {STRATEGY}:
        section, was = sections[name], recipe.get(name)
        if name == "train" and isinstance(section, Mapping) and isinstance(was, Mapping):
            was = {setting: was.get(setting) for setting in section}
        if section is not None and _as_mapping(section) != _as_mapping(was):
            or_fresh = ", or set restore_optimizer to false" if name in FRESH else ""
            raise UserError(
                f"{name}: a session with a checkpoint has that of the checkpoint, {json.dumps(was)}",
                action=f"leave it out{or_fresh}",
            )
    return merged({base: recipe}, base, own)


def _as_mapping(pick: Any) -> Any:
    return {"name": pick} if isinstance(pick, str) else pick


def _count(value: Any) -> int:
    """The number of texts and numbers in a value, with keys of mappings; counting ends at `MOST`."""
    waiting, count = [value], 0
    while waiting and count <= MOST:
        part = waiting.pop()
        if isinstance(part, Mapping):
            count += len(part)
            waiting += list(part.values())[: MOST + 1]
        elif isinstance(part, list | tuple):
            waiting += part[: MOST + 1]
            count += max(0, len(part) - MOST - 1)
        else:
            count += 1
    return count


def _check_plain(value: Any, where: str) -> None:
    """Check that a client's texts are names. A pattern could take forever to match, and a path could name a file of the
    server.

    Raises:
        UserError: a text is neither a name nor a path of modules.
    """
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise UserError(
            f"{where}: {value[:80]!r} cannot be a name",
            action="use letters, digits, '_', '.' and '-'; of modules, give a list of names instead of a pattern",
        )
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(str(key), f"a key of {where}")
            _check_plain(part, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for n, part in enumerate(value):
            _check_plain(part, f"{where}[{n}]")


def scale_of(pick: Any, most: int) -> dict[str, Any]:
    """The section `scale` of a model that is spread over several processes.

    Args:
        pick: a name, or a mapping with `name` and optionally `devices` (2) and, of hybrid sharding, `replicas` (2);
            capitals, `_` and blanks of the name do not matter.
        most: processes that one model may have.

    Raises:
        UserError: the strategy is missing or has no access to gradients between two calls; or there are more processes
            than allowed.
    """
    options = dict(pick) if isinstance(pick, Mapping) else {"name": pick}
    named = options.pop("name", None)
    if not isinstance(named, str):
        raise UserError(f"strategy: {pick!r} picks none", action="leave it out")
    name = _standard(named)
    if name in REFUSED:
        raise UserError(
            f"strategy {name}: per-step gradient access is incompatible with its parameter sharding",
            action=f"choose {', '.join(STEPWISE)}, or train whole steps with `ft run`",
        )
    if name not in STEPWISE:
        near = nearest(name, [*STEPWISE, *REFUSED])
        meant = f"did you mean {near}? " if near else ""
        raise UserError(f"strategy {named!r} is not known", action=f"{meant}leave it out")
    if most <= 1:
        raise UserError(
            f"strategy {name}: this server trains each model on one device",
            action="leave it out; its operator allows more with ft serve --ranks",
        )
    numbers = {"devices": 2, **({"replicas": 2} if name == "fsdp-hybrid" else {})}
    for option, value in options.items():
        if option not in numbers or type(value) is not int or value < 2:
            raise UserError(
                f"strategy.{option}: {value!r}", action=f"give {' and '.join(numbers)}, each a number from 2"
            )
        numbers[option] = value
    devices, replicas = numbers["devices"], numbers.get("replicas", 1)
    if devices > most:
        raise UserError(
            f"strategy.devices is {devices}, and this server spreads a model over {most} at most", action="ask for less"
        )
    if devices % replicas:
        raise UserError(f"strategy.devices is {devices}, which {replicas} replicas cannot share", action="change one")
    spread = STEPWISE[name]
    return {"devices": devices, STRATEGY: {**spread, "replicas": replicas} if replicas > 1 else spread}


def ranks_of(recipe: Mapping[str, Any]) -> int:
    """The number of processes of a recipe's model."""
    devices = (recipe.get("scale") or {}).get("devices", 1)
    return devices if isinstance(devices, int) else 1


def check_scale(recipe: Mapping[str, Any]) -> None:
    """Check that clients have access to the gradients of a served recipe between two calls.

    Raises:
        UserError: its `scale` divides them, or needs other machines.
    """
    scale = recipe.get("scale") or {}
    pick = scale.get(STRATEGY, "auto")
    options = dict(pick) if isinstance(pick, Mapping) else {"name": pick}
    name = str(options.get("name")).rpartition(":")[2]
    hybrid = name == "fsdp" and options.get("replicas", 1) > 1 and options.get("tensor", 1) == 1
    if ranks_of(recipe) > 1 and not (hybrid or name in ("auto", "ddp", "deepspeed")):
        raise UserError(
            f"scale.strategy: {name} cannot be served, since clients need gradients between two calls",
            action="choose ddp, fsdp with replicas, or deepspeed",
        )
    if scale.get("nodes", 1) != 1:
        raise UserError("scale.nodes: a server starts the ranks of a model on its own machine", action="leave it out")


def on_one_device(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the same model in one process, for samplers."""
    return {name: section for name, section in recipe.items() if name != "scale"}


def _standard(name: str) -> str:
    """`ZeRO3`, `zero_3`, `deepspeed zero-3` are `zero-3`; `FSDP_HYBRID_SHARD` is `fsdp-hybrid`."""
    text = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("deepspeed-").removesuffix("-shard")
    text = text.replace("zero-stage-", "zero-")
    return f"zero-{text[4:]}" if text.startswith("zero") and text[4:].isdigit() else text


def described(about: Mapping[str, Any] | None) -> str:
    """A client's notes on a session or model, as JSON.

    Raises:
        UserError: they are too long.
    """
    text = json.dumps(about or {})
    if len(text) > _ABOUT:
        raise UserError(f"metadata of {len(text)} bytes", action=f"send at most {_ABOUT}")
    return text


def all_of(names: Collection[str]) -> str:
    """Names for a message."""
    return ", ".join(sorted(names))
