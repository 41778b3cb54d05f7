"""A run as the model of the next one: its artifact becomes the base, and the new run records its origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.errors import PlanError, RecipeError, UserError
from finetooth_hooks.protocols import Loader, ModelInfo, ModelTensors, Quantizer, Tokenizer
from finetooth_recipes.recipe_picks import AUTO
from finetooth_saving.artifact import digest_of
from finetooth_saving.run_folder import MERGED, PLAN, RUNS, artifact_of, check_no_such_run, is_whole, run_of
from finetooth_saving.run_recipe import without_training
from finetooth_toolbox.decisions import Decisions
from finetooth_toolbox.files.contents import FileContents
from finetooth_toolbox.files.manifests import MANIFEST
from finetooth_toolbox.files.trained_over import check_base
from finetooth_toolbox.precision_choice import stored_precision

from finetooth_core.plugins.catalog import Registered
from finetooth_core.plugins.part_builder import Builder, BuiltPart
from finetooth_core.settings.claims import claimed
from finetooth_core.settings.recipe import Recipe, load
from finetooth_core.settings.run_recipe import recipe_of

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""Files that an adapter consists of."""


@dataclass(frozen=True)
class Ancestor:
    """The origin of a run.

    Attributes:
        run: its folder, as the recipe of the next one names it.
        artifact_sha256: of the manifest of its artifact, which holds the SHA-256 of every file.
        recipe_sha256, plan_sha256: of its recipe and plan.
        data: SHA-256 of its data by setting, as far as known.
        model: what it was made from.
        parent: the run before it.
    """

    run: str
    artifact_sha256: str
    recipe_sha256: str
    plan_sha256: str
    data: Mapping[str, str]
    model: str
    parent: Mapping[str, Any] | None = None

    @property
    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        content = {name: value for name, value in vars(self).items() if name != "parent"}
        return {**content, "data": dict(self.data), **({"parent": self.parent} if self.parent else {})}


def ancestor(folder: Path, named: str) -> Ancestor:
    """The facts of a run from its manifest and plan.

    Raises:
        UserError: they cannot be read.
    """
    manifest_file = folder / "artifact" / MANIFEST
    try:
        content = manifest_file.read_bytes()
        manifest = json.loads(content)
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return Ancestor(
            run=named,
            artifact_sha256=hashlib.sha256(content).hexdigest(),
            recipe_sha256=manifest["recipe_sha256"],
            plan_sha256=manifest["plan_sha256"],
            data=data_hashes(plan["decisions"]),
            model=str(manifest["model"]),
            parent=manifest.get("parent"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model: {folder}: its manifest or plan cannot be read: {error}", action="train it again"
        ) from error


def data_hashes(decisions: Any) -> dict[str, str]:
    """SHA-256 of the data by setting (`data.train.sha256`), from a plan's decisions as JSON."""
    return {
        d["setting"]: d["value"]
        for d in decisions
        if d["setting"].startswith("data.") and d["setting"].endswith(".sha256")
    }


class Parent(Protocol):
    """The parts of a run, from its own recipe."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def builder(self) -> Builder: ...
    @property
    def framework(self) -> str: ...
    @property
    def loader(self) -> Loader: ...
    @property
    def loading(self) -> Loading:
        """The loader of its base."""
        ...

    @property
    def renderer_built(self) -> BuiltPart:
        """How its rows became tokens."""
        ...


Loading = tuple[Registered, Mapping[str, Any]]
"""The entry of a loader, and its options."""
ParentOf = Callable[[Recipe, Path], Parent]
"""From the recipe and the folder of a run to its parts."""


class Trained(LoaderBase):
    """A `protocols.Loader` of an artifact: whole weights, or an adapter merged into its base in fp32.

    Args:
        folder: for messages.
        artifact: its folder with weights.
        parent: makes the run's parts.
        whole: loads the artifact, if it has whole weights; None for an adapter.
    """

    def __init__(
        self, folder: Path, artifact: Path, parent: Callable[[], Parent], whole: BuiltPart | None = None
    ) -> None:
        self.folder, self.artifact = folder, artifact
        self._parent, self._whole = parent, whole

    @cached_property
    def parent(self) -> Parent:
        """What it was made with."""
        return self._parent()

    @property
    def loading(self) -> Loading:
        """The loader of the artifact, or of the adapter's base."""
        if self._whole is not None:
            return self._whole.registered, self._whole.plain_options
        return self.parent.loading

    @property
    def _inner(self) -> tuple[Loader, str]:
        """The loader and reference of the base, or of the artifact itself if it is whole."""
        if self._whole is not None:
            return self._whole.part, str(self.artifact)
        return self.parent.loader, self.parent.recipe.model.name

    def describe(self, reference: str) -> ModelInfo:
        """The model by its loader, with the run's folder as its reference."""
        loader, inner = self._inner
        info = loader.describe(inner)
        config, contents = dict(info.config), info.contents
        if self._whole is None:
            check_base(self.artifact, info, own=True)
            added = {f"adapter/{name}": self.artifact / name for name in ADAPTER if (self.artifact / name).is_file()}
            contents = FileContents(added, also=info.contents)
            config |= self._adapter.part.folded_config(self.artifact)
            if info.stored is None or info.stored_weights:  # a sum is plain numbers
                config.pop("quantization_config", None)
                info = replace(info, stored=None, stored_weights=0, resident_bytes=None)
        # the merged model is on no disk yet
        published = self.artifact if self._whole is not None else self.folder / MERGED
        place = str(published.absolute())
        return replace(
            info,
            reference=str(self.folder),
            revision=self.digest(),
            config=config,
            contents=contents,
            published=place,
            # of an adapter: the base in fp32, and its file, which stays mapped
            loading_bytes=info.loading_bytes if self._whole is not None else 4 * info.parameters + info.weight_bytes,
        )

    def digest(self) -> str:
        """SHA-256 that stands for every file of the artifact."""
        return digest_of(self.artifact)

    def tokenizer(self, reference: str) -> Tokenizer:
        """Of the model that was trained."""
        loader, inner = self._inner
        return loader.tokenizer(inner)

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None,
        meta: bool = False,
    ) -> Any:  # fmt: skip
        """The trained model. An adapter over a quantised base is merged into the dequantised numbers, and the sum is
        plain numbers; a quantizer quantises it again.

        Raises:
            PlanError: its adapter cannot be merged, or its base cannot be dequantised.
        """
        if meta:
            raise self._cannot("build a model without its weights", "meta")
        loader, inner = self._inner
        if self._whole is not None:
            return loader.load(inner, framework=framework, precision=precision, device=device, quantizer=quantizer)
        self._check_readable()
        if "fold" not in self._adapter.part.capabilities:
            name = self._adapter.registered.full_name
            raise PlanError(
                f"model: the adapter of {self.folder} ({name}) cannot be folded into its base",
                action="name a run with whole weights, or one with an adapter that can",
            )
        base = loader.load(
            inner, framework=framework, precision=self._base_precision(precision), quantizer=self._stores(),
            device=device,
        )  # fmt: skip
        pad_id = loader.tokenizer(inner).pad_id
        again = {} if quantizer is None else {"quantizer": quantizer}
        return self._adapter.part.fold(base, self.artifact, precision=precision, device=device, pad_id=pad_id, **again)

    @property
    def capabilities(self) -> frozenset[str]:
        """Whether loader and adapter work tensor by tensor."""
        by_tensor = self._whole is not None or "fold_tensors" in self._adapter.part.capabilities
        return self._inner[0].capabilities & ({"tensors", "widen", "write"} if by_tensor else {"widen", "write"})

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """As the loader of its base does."""
        self._inner[0].widen(model, size, new)

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write what was trained as a model."""
        self._inner[0].write(reference, folder, precision=precision, of=of or self)

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        """The trained model, tensor by tensor; of an adapter over a quantised base, the sums with the dequantised
        numbers. None if the sums shall be quantised, which needs the whole model.
        """
        loader, inner = self._inner
        if self._whole is not None:
            return loader.tensors(inner, framework=framework, precision=precision, quantizer=quantizer)
        if quantizer is not None:
            return None
        computed = self._base_precision(precision)
        base = loader.tensors(inner, framework=framework, precision=computed, quantizer=self._stores())
        return None if base is None else self._adapter.part.fold_tensors(base, self.artifact)

    @property
    def _in_fewer_bits(self) -> bool:
        """Whether the base of the run is quantised, by its quantizer or in its file."""
        loader, inner = self._inner
        return self.parent.recipe.quantization is not None or loader.describe(inner).stored is not None

    def _base_precision(self, precision: str) -> str:
        """The precision for reading the base: the run's, if another would give other quantised codes."""
        return self._computed_in() or precision if self._in_fewer_bits else "fp32"

    def _computed_in(self) -> str:
        """The precision of the run; empty if its plan does not say it."""
        plan = self.folder / PLAN
        if not plan.is_file():
            return ""
        return stored_precision(json.loads(plan.read_text(encoding="utf-8")).get("train", {}).get("precision") or "")

    def _stores(self) -> Quantizer | None:
        """What the run stored its base with; None: nothing."""
        parent = self.parent
        pick = parent.recipe.quantization
        if pick is None:
            return None
        quantizer: Quantizer = parent.builder.section(
            "quantizer", pick, "quantization", framework=parent.framework
        ).part
        return quantizer

    def _check_readable(self) -> None:
        """
        Raises:
            PlanError: only another library reads the quantised base.
        """
        loader, base = self._inner
        info = loader.describe(base)
        if info.stored is not None and not info.stored_weights:
            raise PlanError(
                f"model: {self.folder} was trained over {base}, which is stored as {info.stored.name}, and a "
                "merged weight cannot be stored in these bits",
                action=f"continue its adapter over the base: model={base} adapter.resume_from={self.folder}",
            )

    @cached_property
    def _adapter(self) -> BuiltPart:
        pick, builder = self.parent.recipe.adapter, self.parent.builder
        return builder.section("adapter", pick, "adapter", framework=self.parent.framework)


class FromRun(Trained):
    """The loader of a run's artifact.

    Args:
        folder: the run.
        parent: makes the run's parts.
        whole: loads its artifact, if that has whole weights; None for an adapter.

    Raises:
        UserError: the run kept no artifact, or a file of it is damaged.
    """

    def __init__(self, folder: Path, parent: Callable[[], Parent], whole: BuiltPart | None) -> None:
        super().__init__(folder, artifact_of(folder), parent, whole)

    def decide(self, log: Decisions, named: str) -> None:
        """Say in the plan where the model comes from.

        Args:
            named: the run, as the recipe names it.
        """
        if self._whole is None:
            registered, options = self.loading
            log.pick("loader", registered.full_name, options)
        method = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))["picks"].get("method", "")
        kind = method.rpartition(":")[2] or "a"
        how = (
            "its whole weights"
            if self._whole is not None
            else f"its adapter is merged into {self.parent.recipe.model.name} in fp32, and the result is the base"
        )
        if self._whole is None and self._in_fewer_bits:
            how += "; the run's base is quantised, and the merge uses the dequantised weights"
        log.decide("model", named, f"{kind} run: {how}; every file was checked")
        parent: Mapping[str, Any] | None = ancestor(self.folder, named).as_json
        setting = "model.parent"
        while parent:
            data = ", ".join(f"{name.removesuffix('.sha256')} {value[:12]}" for name, value in parent["data"].items())
            came = f"artifact of {parent['run']}; recipe {parent['recipe_sha256'][:12]}; {data or 'data of no file'}; "
            log.decide(setting, parent["artifact_sha256"], f"{came}from {parent['model']}")
            parent, setting = parent.get("parent"), f"{setting}.parent"


def from_run(recipe: Recipe, builder: Builder, framework: Callable[[], str], parent_of: ParentOf) -> FromRun | None:
    """The loader for a recipe whose model is a run; None if it is none.

    Args:
        framework: that the loader of whole weights must speak.
        parent_of: makes what the run was made with.

    Raises:
        RecipeError: the name is also one that a loader knows.
        UserError: the run kept no artifact, or a file of it is damaged.
    """
    name = recipe.model.name
    folder = run_of(name, builder.catalog)
    if folder is None:
        if recipe.model.loader == AUTO:
            check_no_such_run(name)
        return None
    clash = next((r for r in builder.catalog.all("loader") if name in getattr(r.entry, "names", ())), None)
    if clash is not None and folder == (RUNS / name).absolute():
        raise RecipeError(
            "model",
            f"{name!r} is a model of {clash.full_name} and a run in {RUNS}/",
            action=f"write {RUNS}/{name} for the run",
        )
    artifact = artifact_of(folder)
    recipe.model_is_at(folder)
    whole = None
    if is_whole(artifact):
        registered, _ = claimed(recipe, builder.catalog, "loader", "model", str(artifact), framework())
        whole = builder.recorded(registered, registered.full_name, "model.loader")

    def parent() -> Parent:
        return parent_of(load(without_training(recipe_of(folder)), base=folder), folder)

    loader = FromRun(folder, parent, whole)
    loader.decide(builder.log, name)
    return loader
