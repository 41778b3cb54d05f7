"""`adapter.resume_from`: an adapter that continues another one, on the same base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.errors import RecipeError, UserError
from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.lora_settings import special_setting
from finetooth_modelfiles.targets import resolve
from finetooth_toolbox.files.manifests import MANIFEST, ManifestProblem, check_folder, read_manifest
from finetooth_toolbox.files.trained_over import check_base

RESUME = "adapter.resume_from"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ANOTHER = "name an adapter of this base, kind and size, or leave it out"


def begin(reference: str, context: Context, kind: str, settings: Mapping[str, Any], targets: Any) -> Path:
    """The artifact that `resume_from` names, checked as far as that takes no weights of the base.

    Args:
        reference: a run by its folder or by its name under `runs/`, or an adapter's folder.
        kind: peft's name of the adapter's kind.
        settings: required settings of the artifact's config.
        targets: the recipe's; None are compared once the model is there.

    Raises:
        RecipeError: the artifact is missing, or has another base, kind, size or choice of modules.
    """
    folder = place(reference)
    about = _about(folder, reference)
    try:
        check_base(folder, context.model, named=reference)
    except UserError as error:
        raise RecipeError(RESUME, error.problem, action=error.action) from error
    if about.get("peft_type") != kind:
        raise RecipeError(RESUME, f"{reference} holds an adapter of the kind {about.get('peft_type')}", action=ANOTHER)
    if special := special_setting(about):
        raise RecipeError(
            RESUME, f"{reference}: it was made with {special}, which no adapter here computes", action=ANOTHER
        )
    if whole := about.get("modules_to_save"):  # the head of a reward model, for one
        raise RecipeError(
            RESUME,
            f"{reference} also holds whole weights of {', '.join(map(str, whole))}, which no adapter continues",
            action=f"set model: {reference} and leave {RESUME} out, so that its sum is the base, if the method is the "
            "same; else name another adapter",
        )
    for name, value in settings.items():
        if about.get(name) != value:
            raise RecipeError(
                RESUME,
                f"{reference} was trained with {name} {about.get(name)}, and here it is {value}",
                action="set the adapter's options as they were",
            )
    if targets is not None:
        check_targets(folder, reference, targets, context.facts)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    context.note(f"{RESUME}: training begins with the adapter of {reference} (SHA-256 {digest[:12]})")
    return folder.absolute()


def place(reference: str) -> Path:
    """The folder with an adapter that a reference means.

    Raises:
        RecipeError: the artifact is missing, or a file of it is damaged.
    """
    start = Path(reference).expanduser()
    for folder in (start, start / "artifact", Path("runs") / reference / "artifact"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            break
    else:
        whole = any((folder / "config.json").is_file() for folder in (start, start / "artifact"))
        what = "holds whole weights, not an adapter" if whole else f"no {CONFIG} with {WEIGHTS} there or in artifact/"
        cure = "name it as the model" if whole else "name a run with an adapter, or an adapter's folder"
        raise RecipeError(RESUME, f"{reference}: {what}", action=cure)
    if (folder / MANIFEST).is_file():
        try:
            check_folder(folder, more=True)
        except ManifestProblem as error:
            raise RecipeError(
                RESUME, f"{folder}/{error}", action="the artifact is damaged: export it again from a checkpoint"
            ) from error
    return folder


def base_names(about: Mapping[str, Any], folder: Path) -> set[str]:
    """The names of an adapter's base in its config and its manifest; empty if unknown."""
    named = {str(about.get("base_model_name_or_path") or "")}
    if (folder / MANIFEST).is_file():
        named.add(str(json.loads(read_manifest(folder)).get("model", "")))
    return named - {""}


def check_targets(folder: Path, reference: str, targets: Any, facts: ModelFacts) -> None:
    """Checks that the saved adapter changes the modules that the recipe names.

    Raises:
        RecipeError: the adapter adds to other modules than the recipe asks for.
    """
    carried = adapted(folder)
    try:
        chosen = set(resolve(targets, facts, carried).modules)
    except RecipeError:
        chosen = set()
    other = next((path for path in carried if path not in chosen), None)
    if other is not None:
        raise RecipeError(
            RESUME,
            f"{reference} adds to {other}, and adapter.targets does not, or names what it does not add to",
            action="set adapter.targets as it was",
        )


def adapted(folder: Path) -> tuple[str, ...]:
    """Paths of the modules that an artifact adds to, by the names in its file; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, "np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise RecipeError(RESUME, f"{folder / WEIGHTS} cannot be read: {error}", action="use another one") from error
    marks = (".lora_", ".oft_", ".boft_", ".vera_", ".ia3_")
    paths: dict[str, None] = {}
    for name in names:
        for mark in marks:
            path, between, _ = name.removeprefix("base_model.model.").partition(mark)
            if between:
                paths[path] = None
    return tuple(paths)


def _about(folder: Path, reference: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(RESUME, f"{reference}: {CONFIG} cannot be read: {error}", action=ANOTHER) from error
    return config if isinstance(config, dict) else {}
