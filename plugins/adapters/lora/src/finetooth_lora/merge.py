"""The command `ft merge`, which merges an adapter into its base and writes a transformers folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from finetooth_hooks import CommandContext, UserError
from finetooth_hooks.entries import Backend as BackendEntry
from finetooth_hooks.entries import Loader as LoaderEntry
from finetooth_hooks.protocols import Loader
from finetooth_peftfiles.folding import CONFIG, WEIGHTS, merged
from finetooth_saving.artifact import write_folder
from finetooth_saving.moved_bases import base_moved
from finetooth_saving.origins import as_written, origin_of
from finetooth_saving.run_folder import PLAN, check_output, check_unused, no_such_run, plan_of
from finetooth_saving.runs.written_models import UNMEASURED, compare
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.files.manifests import ManifestProblem, check_folder, listed_files, read_manifest
from finetooth_toolbox.files.trained_over import check_base
from finetooth_toolbox.messages.shipped import carry
from finetooth_torchshared.packing import FORMATS, Format, pack_folder, without_memory
from finetooth_torchshared.whole_weights import export_weights

Precision = Literal["fp32", "bf16", "fp16"]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Merge:
    """The parts of a merge.

    Attributes:
        adapter: folder in peft's layout.
        recipe: of the adapter's run; without a run, one with only the base.
        base: reference of the base model.
        output: folder to write.
    """

    adapter: Path
    recipe: Path | Mapping[str, Any]
    base: str
    output: Path


def find(source: Path, output: Path | None) -> Merge:
    """Find adapter, recipe and output of a merge from the user's arguments.

    Args:
        source: a run folder, or an adapter's.
        output: None: `merged` in the run folder, or the adapter's folder with the suffix `-merged`.

    Raises:
        UserError: the run has no adapter, a file of it differs from its manifest, or the output exists already.
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


def trained_whole(source: Path, output: Path | None) -> Merge | None:
    """A run whose artifact is a whole model, which can be packed directly; None for others.

    Raises:
        UserError: a file of it differs from its manifest, or the output exists already.
    """
    weights = source / "artifact"
    if not (weights / "config.json").is_file() or not (source / "recipe.yaml").is_file():
        return None
    verify(weights)
    place = output or source / "merged"
    if place.exists():
        raise UserError(f"--output: {place} exists", action="name another folder with --output; nothing was changed")
    return Merge(weights, source / "recipe.yaml", str(weights), place)


def base_alias(obj: CommandContext, adapter: Path) -> str:
    """The base's name in an artifact's manifest, if a loader knows it: it is then exactly the base of the training.
    Else empty."""
    if not (adapter / MANIFEST).is_file():
        return ""
    name = json.loads(read_manifest(adapter)).get("model", "")
    loaders = (registered.entry for registered in obj.catalog.all("loader"))
    return str(name) if any(isinstance(entry, LoaderEntry) and name in entry.names for entry in loaders) else ""


def in_torch(obj: CommandContext, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe with a backend that can merge: artifacts of other frameworks are in peft's layout too."""
    pick = recipe.get("backend")
    name = pick.get("name") if isinstance(pick, Mapping) else pick
    for registered in obj.catalog.all("backend"):
        entry = registered.entry
        if isinstance(entry, BackendEntry) and name in (entry.name, registered.full_name):
            if entry.framework == "torch":
                return recipe
            break
    rest = {section: value for section, value in recipe.items() if section not in ("hardware", "backend")}
    return {**rest, "backend": "torch"}


def own_loader(obj: CommandContext, merge: Merge, recipe: Mapping[str, Any]) -> Loader | None:
    """The loader that merges the adapter of a run into a base quantised by another framework than torch: that of a
    recipe whose model is the run, in the run's framework. None if torch can read the base."""
    if not isinstance(merge.recipe, Path) or not (merge.recipe.parent / PLAN).is_file():
        return None
    recipe = {**recipe, "backend": plan_of(merge.recipe.parent)["picks"].get("backend", "torch")}
    if in_torch(obj, recipe) is recipe:
        return None
    loader = obj.context(recipe).loader
    in_bits = recipe.get("quantization") is not None or loader.describe(merge.base).stored is not None
    if not in_bits or "write" not in loader.capabilities:
        return None
    run = {"model": str(merge.recipe.parent), "backend": recipe["backend"]}
    return obj.context(run).loader


def verify(adapter: Path) -> None:
    """Check every file of a run's artifact against its manifest; a foreign folder without a manifest passes.

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
        raise UserError(f"{path} is not a readable manifest: {error}", action=damaged) from error
    try:
        check_folder(adapter, more=True)
    except ManifestProblem as error:
        raise UserError(f"{adapter}/{error}", action=damaged) from error


def write(
    fill: Callable[[Path], Any], tokenizer: Any, adapter: Path, output: Path, packed: Format | None = None,
    check: Callable[[Path], None] = lambda written: None,
) -> None:  # fmt: skip
    """Write a transformers folder under a temporary name, then rename it into place. Its manifest records the sources.

    Args:
        fill: writes config and weights into a folder, and returns the model, perhaps without memory.
        adapter: the merged adapter; the files with its run's chat template are copied.
        packed: packing of linear weights; None: plain numbers.
        check: checks the written files before the rename; if it raises an error, no files remain.

    Raises:
        EngineError: the folder cannot be written; no files remain.
        UserError: a weight cannot be packed.
    """

    def whole(folder: Path) -> None:
        model = fill(folder)
        tokenizer.save(folder)
        carry(adapter, folder)
        if packed is not None:
            pack_folder(model, folder, packed)
        check(folder)

    write_folder(output, whole, {"kind": "merge", **as_written(origin_of(adapter))})


def check_mergeable(merge: Merge, loader: Loader) -> None:
    """Checks that the adapter can be added to the weights of its base.

    Raises:
        UserError: the base has a format that only its library reads, or is not the base of the adapter's training.
    """
    info = loader.describe(merge.base)
    if info.stored is not None and not info.stored_weights:
        raise UserError(
            f"model: {merge.base} is stored as {info.stored.name}, and a merged weight cannot be stored in these bits",
            action="serve the adapter with its base, without a merge",
        )
    check_base(merge.adapter, info, own=True)


def plain_base(loader: Loader, merge: Merge, precision: Precision, quantizer: Any) -> Any:
    """The base as plain numbers, the same as in the adapter's training.

    Args:
        quantizer: the run's quantizer; None: the run had none.

    Raises:
        RecipeError: a module's weight cannot be read.
    """
    load = partial(loader.load, merge.base, framework="torch", device="cpu")
    if quantizer is None and loader.describe(merge.base).stored is None:
        return load(precision=precision)
    import torch
    from finetooth_torchshared.kept_in_fp32 import cast
    from finetooth_torchshared.quantised import dequantise

    model = load(precision=base_precision(loader, merge, precision, quantizer, plain=precision), quantizer=quantizer)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return cast(dequantise(model, torch.float32).float(), dtype, "cpu")


def copied(weights: Path, folder: Path) -> Any:
    """Copy a folder of whole weights.

    Returns:
        Its model, without memory.

    Raises:
        UserError: only the model's loader knows its class.
    """
    model = without_memory(weights)
    if model is None:
        raise UserError(f"{weights}: a model of this kind cannot be packed", action="use it as it is")
    for file in (*weights.glob("*.json"), *weights.glob("*.safetensors")):
        if file.name != MANIFEST:
            shutil.copyfile(file, folder / file.name)
    return model


def filler(loader: Loader, merge: Merge, precision: Precision, quantizer: Any) -> Callable[[Path], Any]:
    """The function that writes the merged weights: tensor by tensor if base and adapter allow it, else from memory.

    Raises:
        UserError: the adapter cannot be read, or does not fit the base.
    """
    from finetooth_torchshared.model_tensors import keep_processors, write_model_tensors

    from finetooth_lora.shards import fold_tensors

    info = loader.describe(merge.base)
    base = None
    if "tensors" in loader.capabilities:
        computed = base_precision(loader, merge, precision, quantizer, plain="fp32")
        base = loader.tensors(merge.base, framework="torch", precision=computed, quantizer=quantizer)
    folded = None if base is None else fold_tensors(base, merge.adapter)
    if folded is not None:
        click.echo(f"merging {merge.base} in {precision}, tensor by tensor")

        def by_tensor(folder: Path) -> Any:
            write_model_tensors(folded, folder, precision)
            keep_processors(info, folder)
            return folded.model

        return by_tensor
    click.echo(f"loading {merge.base} in {precision}")
    whole = merged(plain_base(loader, merge, precision, quantizer), merge.adapter, loader.tokenizer(merge.base).pad_id)

    def from_memory(folder: Path) -> Any:
        export_weights(whole, folder)
        keep_processors(info, folder)
        return whole

    return from_memory


def base_precision(loader: Loader, merge: Merge, precision: Precision, quantizer: Any, plain: str) -> str:
    """The precision for reading a base: for a quantised base that of the run, since another precision gives other
    codes.

    Args:
        plain: precision for a base of plain numbers.
    """
    if quantizer is None and loader.describe(merge.base).stored is None:
        return plain
    return recorded_precision(merge.recipe) or precision


def recorded_precision(recipe: Path | Mapping[str, Any]) -> str:
    """The precision of the run; empty if unknown."""
    plan = recipe.parent / "plan.json" if isinstance(recipe, Path) else None
    if plan is None or not plan.is_file():
        return ""
    return str(json.loads(plan.read_text(encoding="utf-8")).get("train", {}).get("precision") or "")


@click.command("merge")
@click.argument("source", metavar="RUN_OR_ADAPTER")
@click.argument("settings", nargs=-1, metavar="[model=NEW]")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write; default: merged in the run folder.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of the base and of the result.",
)
@click.option(
    "--to",
    "stored",
    type=click.Choice(["plain", *FORMATS]),
    default="plain",
    show_default=True,
    help="How linear weights are stored: as numbers of --precision, or packed as compressed-tensors, HQQ or Quanto.",
)
@click.option(
    "--bound",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="How much worse than the run its own evaluator may find a packed folder, or one over a quantised base.",
)
@click.pass_obj
def command(
    obj: CommandContext, source: str, settings: tuple[str, ...], output: Path | None, precision: Precision,
    stored: str, bound: float,
) -> None:  # fmt: skip
    """Merge an adapter into its base model.

    RUN_OR_ADAPTER is a run by its folder or by its name under runs/, or the folder of an adapter; with --to also a run
    that trained whole weights, for example with `adapter: qat`. Writes a folder that transformers and others load like
    any model, tokenizer included. If the base is quantised, or the result will be, the run's own evaluators measure the
    written model, and a model that is worse by more than --bound is not kept. model=NEW says where the base of a run is
    now.
    """
    folder = obj.run_folder(source) or Path(source)
    if not folder.is_dir():
        raise no_such_run(source)
    check_output(source, output)
    if settings:
        click.get_current_context().with_resource(base_moved(folder, settings))
    with working(f"merging {source}"):
        whole = trained_whole(folder, output) if stored != "plain" else None
        merge = find(folder, output) if whole is None else whole
        check_unused(merge.output)  # that it can be made, before the weights are read
        recipe = obj.load(merge.recipe) if isinstance(merge.recipe, Path) else merge.recipe
        if whole is not None:
            recipe = {**recipe, "model": merge.base, "adapter": "full"}
        elif isinstance(merge.recipe, Path):  # the base with the run's name, not that of other tools
            model = recipe["model"]
            merge = replace(merge, base=model if isinstance(model, str) else str(model["name"]))
        elif alias := base_alias(obj, merge.adapter):
            merge = replace(merge, base=alias)
            recipe = {"model": alias}
        own = own_loader(obj, merge, recipe) if stored == "plain" else None
        recipe = in_torch(obj, recipe) if own is None else recipe
        context = obj.context(recipe)
        loader = context.loader  # has the recipe's added tokens
        tokenizer = loader.tokenizer(merge.base)
        pick = recipe.get("quantization")
        quantizer = None if pick is None else context.build("quantizer", pick, setting="quantization")
        if own is not None:
            fill: Callable[[Path], Any] = partial(own.write, str(folder), precision=precision)
        elif whole is None:
            check_mergeable(merge, loader)
            fill = filler(loader, merge, precision, quantizer)
        else:
            fill = partial(copied, whole.adapter)
        packed = None if stored == "plain" else FORMATS[stored]
        changed = quantizer is not None or packed is not None or own is not None
        measured: list[str] = []

        def check(written: Path) -> None:
            if not changed:
                return
            if not isinstance(merge.recipe, Path):
                measured.append(UNMEASURED)
                return
            action = "merge it --to plain, use the adapter with its base, or raise --bound"
            measured.append(compare(obj, merge.recipe.parent, recipe, written, bound, action=action))

        write(fill, tokenizer, merge.adapter, merge.output, packed, check)
    for line in measured:
        click.echo(line)
    click.echo(f"merged {merge.adapter} into {merge.base}: {merge.output}")
