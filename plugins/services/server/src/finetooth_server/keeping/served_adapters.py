"""Adapters of `ft serve --adapter`, offered in addition to their base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, UserError
from finetooth_toolbox.files.trained_over import check_base

from finetooth_server.settings import ServedAdapter


def served_adapters(
    context: CommandContext, references: Sequence[str], served: Mapping[str, Mapping[str, Any]]
) -> dict[str, ServedAdapter]:
    """Each adapter by its served name, which is the given one.

    Args:
        references: runs, or folders of adapters.
        served: recipe by name of each base model.

    Raises:
        UserError: the reference holds no adapter, or no served model is its base.
    """
    adapters: dict[str, ServedAdapter] = {}
    for reference in references:
        if reference in served or reference in adapters:
            raise UserError(f"--adapter {reference}: it is served under this name already", action="name it once")
        run = context.run_folder(reference)
        folder = (Path(reference).expanduser() if run is None else run / "artifact").absolute()
        if not (folder / "adapter_config.json").is_file():
            whole = (folder / "config.json").is_file()
            raise UserError(
                f"--adapter {reference}: " + ("it holds whole weights" if whole else "it holds no adapter"),
                action="serve it by --model" if whole else "name a run with an adapter, or an adapter's folder",
            )
        base = _base(context, reference, folder, served)
        own = _like(folder) if run is None else dict(context.load(run / "recipe.yaml"))
        adapter = {"adapter": own["adapter"]} if "adapter" in own else {}
        adapters[reference] = ServedAdapter(base, {**served[base], **adapter}, folder)
    return adapters


def _like(folder: Path) -> dict[str, Any]:
    """The recipe's section for a LoRA without its run, for an engine that holds it as its own weights."""
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    targets = saved.get("target_modules")
    if saved.get("peft_type") != "LORA" or not isinstance(targets, list):
        return {}
    scaled = {name: saved[of] for name, of in (("rank", "r"), ("alpha", "lora_alpha")) if of in saved}
    ways = {name: True for name, of in (("rslora", "use_rslora"), ("dora", "use_dora")) if saved.get(of)}
    return {"adapter": {"name": "lora", **scaled, **ways, "targets": sorted(targets)}}


def _base(context: CommandContext, reference: str, folder: Path, served: Mapping[str, Mapping[str, Any]]) -> str:
    """Name of an adapter's base model."""
    refusals = []
    for name, recipe in served.items():
        try:
            check_base(folder, context.context(recipe).model, named=f"--adapter {reference}")
        except UserError as error:
            refusals.append(error)
        else:
            return name
    raise refusals[0]
