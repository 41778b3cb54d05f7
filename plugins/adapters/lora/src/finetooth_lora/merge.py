"""`ft merge`: fold an adapter into its base and write a transformers folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from finetooth_hooks import CommandContext, EngineError, UserError
from finetooth_hooks.entries import Loader as LoaderEntry
from finetooth_hooks.protocols import Loader
from finetooth_toolbox.files.manifests import ManifestProblem, check_folder, listed_files, read_manifest
from finetooth_toolbox.peft.folding import CONFIG, WEIGHTS, merged
from finetooth_toolbox.torch.whole_weights import export_weights

Precision = Literal["fp32", "bf16", "fp16"]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Merge:
    """What will be merged.

    Attributes:
        adapter: folder in peft's layout.
        recipe: of the run it comes from; without a run, one that names the base alone.
        base: reference of the base model.
        output: folder to write.
    """

    adapter: Path
    recipe: Path | Mapping[str, Any]
    base: str
    output: Path


def find(source: Path, output: Path | None) -> Merge:
    """Find adapter, recipe and place of the result from what the user named.

    Args:
        source: a run folder, or an adapter's.
        output: None takes `merged` in the run folder, or the adapter's folder with `-merged` behind.

    Raises:
        UserError: there is no adapter, a file of it differs from its manifest, or something is at the place of the
            result already.
    """
    adapter = source / "artifact" if (source / "artifact").is_dir() else source
    if not (adapter / CONFIG).is_file():
        if (adapter / "config.json").is_file():
            raise UserError(
                f"{adapter} holds whole weights, not an adapter: there is nothing to merge", action="use it as it is"
            )
        raise UserError(f"{source}: no {CONFIG} there or in artifact/", action="name a run folder or an adapter folder")
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{adapter}: no {WEIGHTS}", action="name a complete adapter folder")
    verify(adapter)
    try:
        base = json.loads((adapter / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise UserError(f"{adapter / CONFIG} is not JSON: {error}", action="name a complete adapter folder") from error
    run = next((folder for folder in (source, source.parent) if (folder / "recipe.yaml").is_file()), None)
    if not base:
        raise UserError(f"{adapter / CONFIG} names no base model", action="set base_model_name_or_path in it")
    place = output or (run / "merged" if run else adapter.with_name(f"{adapter.absolute().name}-merged"))
    if place.exists():
        raise UserError(f"--output: {place} exists", action="name another folder with --output; nothing was changed")
    return Merge(adapter, run / "recipe.yaml" if run else {"model": base}, base, place)


def known_alias(obj: CommandContext, adapter: Path) -> str:
    """The name under which an artifact's manifest knows its base, if a loader knows it too: then it is exactly the
    model that the adapter was trained on. Else empty."""
    if not (adapter / MANIFEST).is_file():
        return ""
    name = json.loads(read_manifest(adapter)).get("model", "")
    loaders = (registered.entry for registered in obj.catalog.all("loader"))
    return str(name) if any(isinstance(entry, LoaderEntry) and name in entry.names for entry in loaders) else ""


def verify(adapter: Path) -> None:
    """Check every file of a run's artifact against its manifest; a folder without one (made elsewhere) passes.

    Raises:
        UserError: a file is missing or differs, or the manifest cannot be read; names the file.
    """
    path = adapter / MANIFEST
    if not path.is_file():
        return
    damaged = "the artifact is damaged: export it again from a checkpoint of the run, or train again"
    try:
        listed_files(read_manifest(adapter))
    except ManifestProblem as error:
        raise UserError(f"{path} is no manifest that can be read: {error}", action=damaged) from error
    try:
        check_folder(adapter, more=True)
    except ManifestProblem as error:
        raise UserError(f"{adapter}/{error}", action=damaged) from error


def write(model: Any, tokenizer: Any, output: Path) -> None:
    """Write a transformers folder beside its place, then rename it into it.

    Raises:
        EngineError: it cannot be written; nothing is left behind.
    """
    from safetensors import SafetensorError

    beside = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        export_weights(model, beside)
        tokenizer.save(beside)
        beside.chmod(0o755)
        beside.rename(output)
    except (OSError, SafetensorError) as error:
        raise EngineError(
            f"{output} cannot be written: {error}", action="make room or choose another --output"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def check_plain(merge: Merge, recipe: Mapping[str, Any], loader: Loader) -> None:
    """
    Raises:
        UserError: the base is quantised: by the recipe, or as its file stores it.
    """
    pick = recipe.get("quantization")
    name = pick.get("name") if isinstance(pick, Mapping) else pick
    if name is not None:
        raise UserError(
            f"{merge.adapter} was trained over {merge.base} with quantization: {name}, and a sum cannot be stored in "
            "its bits",
            action="keep the adapter beside its base: ft chat and ft serve take the run as it is",
        )
    stored = loader.describe(merge.base).stored
    if stored is not None:
        raise UserError(
            f"model: {merge.base} is stored as {stored.name}, and a sum cannot be stored in its bits",
            action="keep the adapter beside its base",
        )


@click.command("merge")
@click.argument("source", metavar="RUN_OR_ADAPTER")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write; default: merged in the run folder.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the base it is merged into, and of the result.",
)
@click.pass_obj
def command(obj: CommandContext, source: str, output: Path | None, precision: Precision) -> None:
    """Merge an adapter into its base model.

    RUN_OR_ADAPTER is a run by its folder or by its name under runs/, or the folder of an adapter. Writes a folder that
    transformers and others load like any model, tokenizer included.
    """
    folder = obj.run_folder(source) or Path(source)
    if not folder.is_dir():
        raise UserError(
            f"{source}: there is no such folder, and no such run under runs/", action="name a run or an adapter folder"
        )
    merge = find(folder, output)
    recipe = obj.load(merge.recipe) if isinstance(merge.recipe, Path) else merge.recipe
    if isinstance(merge.recipe, Path):  # the base as the run knew it, not as others load it
        model = recipe["model"]
        merge = replace(merge, base=model if isinstance(model, str) else str(model["name"]))
    elif alias := known_alias(obj, merge.adapter):
        merge = replace(merge, base=alias)
        recipe = {"model": alias}
    loader = obj.context(recipe).loader  # knows the tokens that the recipe added
    check_plain(merge, recipe, loader)
    click.echo(f"loading {merge.base} in {precision}")
    model = loader.load(merge.base, framework="torch", precision=precision, device="cpu")
    tokenizer = loader.tokenizer(merge.base)
    write(merged(model, merge.adapter, tokenizer.pad_id), tokenizer, merge.output)
    click.echo(f"merged {merge.adapter} into {merge.base}: {merge.output}")
