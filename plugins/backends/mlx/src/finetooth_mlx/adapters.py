"""The adapters `lora`, `full` and `freeze` for MLX: the trainable parameters, and artifacts in the layouts of peft and
transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Options, PlanError, RecipeError, UserError
from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.compute.held import Addition, Stack
from finetooth_hooks.protocols import ModelFacts, ModelInfo, Quantizer
from finetooth_modelfiles.classifiers import folded_config
from finetooth_modelfiles.lora_settings import (
    check_directions,
    check_settings,
    check_shapes,
    scale_of,
    special_setting,
)
from finetooth_modelfiles.low_rank import LowRankOptions
from pydantic import Field

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""The prefix that peft puts before the paths of a model's modules."""
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
DROPOUT = ".lora_dropout.default"
"""The path of peft's dropout inside a module. torch keys its masks by this path; equal paths drop equal numbers."""
HEAD = "lm_head"
"""Path of the language-model head, with its own weight or tied to the embedding."""
OTHER = "name the artifact of a run with this model and adapter"
BY_TORCH = "merge it into its base with the torch backend first: ft merge"


class LoraOptions(LowRankOptions):
    """Options of `lora`."""

    dora: bool = False
    """Train the norm of each output's weights separately from their direction (Liu et al., 2024, arXiv:2402.09353)."""

    @property
    def scale(self) -> float:
        """Factor on the low-rank product."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class LoraAdapter(AdapterBase):
    """`protocols.Adapter` for MLX. It replaces the target modules by `LowRankLinear`; their paths stay."""

    options: LoraOptions

    @property
    def capabilities(self) -> frozenset[str]:
        """See `protocols.Adapter`."""
        more = {"draws": self.options.dropout, "additions": not self.options.dora}
        return frozenset({"disable", "fold", *(word for word, has in more.items() if has)})

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """`rank * (inputs + outputs)` per module, plus `outputs` with `dora`; exact for layers built like Llama's."""
        from finetooth_modelfiles.sizes import shapes
        from finetooth_modelfiles.targets import resolve

        sizes = shapes(facts)
        chosen = resolve(self.options.targets, facts, tuple(sizes)).modules
        return sum(self.options.rank * sum(sizes[path]) + self.options.dora * sizes[path][1] for path in chosen)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """Insert the layers: A is uniform in +-1/sqrt(inputs), B is zero.

        Raises:
            RecipeError: a target matches nothing; or, with DoRA, weights have no direction.
        """
        from finetooth_modelfiles.targets import resolve
        from mlx.utils import tree_unflatten

        from finetooth_mlx.dropout import Draws
        from finetooth_mlx.low_rank import LowRankLinear, head_of, is_linear

        modules = dict(model.named_modules())
        linear = {path: module for path, module in modules.items() if is_linear(module)}
        if HEAD not in modules and facts.head.module == HEAD:  # one tied to the embedding is not a module
            linear[HEAD] = head_of(modules[f"{facts.body}.embed_tokens"])
        chosen = resolve(
            self.options.targets, facts, tuple(sorted(linear, key=partial(_in_order, facts.linear_targets)))
        ).modules
        model.freeze()
        model.draws = Draws()
        made = [
            (
                path,
                LowRankLinear(
                    linear[path], self.options.rank, self.options.scale, self.options.dropout, path + DROPOUT,
                    model.draws, generator, dora=self.options.dora,
                ),
            )
            for path in chosen
        ]  # fmt: skip
        model.update_modules(tree_unflatten([(path, layer) for path, layer in made if path in modules]))
        for path, layer in made:
            if self.options.dora:
                check_directions(path, layer.lora_magnitude_vector)
            if path not in modules:
                model[path] = layer
            layer.unfreeze(keys=["lora_a", "lora_b", "lora_magnitude_vector"], recurse=False)
        return model

    def fold(
        self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> Any:  # fmt: skip
        """See `protocols.Adapter`. The weights are plain numbers even if the base is quantised.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        from finetooth_mlx.folding import fold, stored

        model.pad_id = pad_id
        return stored(fold(model, folder, precision), quantizer)

    def folded_config(self, folder: Path) -> Mapping[str, Any]:
        """See `protocols.Adapter`."""
        return folded_config(folder)

    def additions(self, folder: Path) -> Mapping[str, Addition] | None:
        """See `protocols.Adapter`."""
        if "additions" not in self.capabilities:
            return super().additions(folder)
        saved, tensors = read_adapter(folder)
        more = ("use_dora", "modules_to_save", "trainable_token_indices")
        paths = sorted(_paths(tensors))
        sides = {f"{path}.{side}.weight" for path in paths for side in SIDES.values()}
        if any(saved.get(name) for name in more) or special_setting(saved) or sides != tensors.keys():
            return None
        scale = scale_of(saved)
        return {p: Addition(tensors[f"{p}.lora_A.weight"], tensors[f"{p}.lora_B.weight"], scale) for p in paths}

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """A `with` block in which the model computes as its base."""
        layers = [module for module in model.modules() if hasattr(module, "lora_a")]
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does.

        Raises:
            PlanError: a module of mlx-lm's model has another path in the model's files, so peft would not find it.
        """
        from finetooth_mlx import heads

        tensors = _added(model)
        _check_paths(model, tensors)
        options = self.options
        config = {
            "base_model_name_or_path": info.published or info.reference,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": options.resolved_alpha,
            "lora_dropout": options.dropout,
            "peft_type": "LORA",
            "r": options.rank,
            "target_modules": sorted(_paths(tensors)),
            "task_type": "CAUSAL_LM",
            "use_dora": options.dora,
            "use_rslora": options.rslora,
            **heads.peft_settings(model),
        }
        tensors |= heads.classifier_tensors(model)
        write_tensors(folder / WEIGHTS, {PREFIX + name: tensor for name, tensor in tensors.items()})
        heads.write_critic(model, folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def restore(self, model: Any, folder: Path) -> None:
        """Load the adapter from an artifact in peft's layout, from any tool.

        Raises:
            UserError: it is not an adapter, or its rank, scale or modules differ.
        """
        import mlx.core as mx

        from finetooth_mlx import heads
        from finetooth_mlx.arrays import named, nested

        saved, tensors = read_adapter(folder)
        check_plain(saved, folder)
        options = self.options
        wanted = {"r": ("rank", options.rank), "lora_alpha": ("alpha", options.resolved_alpha)}
        wanted |= {"use_rslora": ("rslora", options.rslora), "use_dora": ("dora", options.dora)}
        check_settings(saved, wanted, folder)
        heads.take_head(model, tensors, folder)
        mine = _added(model)
        check_shapes(folder, tensors, mine)
        own = {_peft_name(name): name for name in named(model.trainable_parameters()) if not heads.is_head(name)}
        model.update(nested({own[name]: tensor.astype(mx.float32) for name, tensor in tensors.items()}))


@dataclass(frozen=True)
class FullAdapter(AdapterBase):
    """`protocols.Adapter` that trains every parameter."""

    capabilities: frozenset[str] = field(default=frozenset())

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        return parameters

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself.

        Raises:
            PlanError: mlx-lm's class joins or renames the tensors of the model's files, so no artifact in their layout
                can be written.
        """
        from finetooth_mlx.folding import check_names

        check_names(model)
        model.unfreeze()
        return model

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder: config and safetensors."""
        from finetooth_mlx.folding import write_model

        write_model(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Load the weights.

        Raises:
            UserError: the artifact is of another model.
        """
        from finetooth_mlx import heads
        from finetooth_mlx.arrays import named, nested

        tensors = _load(folder / "model.safetensors")
        heads.take_head(model, tensors, folder)
        mine = {name: array for name, array in named(model.parameters()).items() if not heads.is_head(name)}
        if heads.classifier_tensors(model):
            mine = {name: array for name, array in mine.items() if not name.startswith("lm_head.")}
        check_shapes(folder, tensors, mine)
        model.update(nested({name: tensors[name].astype(array.dtype) for name, array in mine.items()}))


class FreezeOptions(Options):
    """Options of `freeze`."""

    layers: int = Field(ge=1)
    """Number of decoder layers that train, counted from the top."""
    norm: bool = False
    """Whether the final norm trains too."""
    head: bool = False
    """Whether the head trains too, and an embedding tied to it."""


@dataclass(frozen=True)
class FreezeAdapter(FullAdapter):
    """`protocols.Adapter` that trains the top layers of a model; the artifact is the whole model."""

    options: FreezeOptions = field(kw_only=True)

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Exact if all layers are equal, the final norm has one weight per hidden unit and the head has no bias.

        Raises:
            RecipeError: the model has fewer layers.
        """
        if self.options.layers > facts.layers:
            raise RecipeError(
                "adapter.layers",
                f"{self.options.layers} layers shall train, but the model has {facts.layers}",
                action=f"set it to at most {facts.layers}, or train the whole model",
            )
        embedding = facts.vocab_size * facts.hidden_size
        in_layers = parameters - embedding * (1 if facts.tied else 2) - facts.hidden_size
        trained = in_layers // facts.layers * self.options.layers
        return trained + facts.hidden_size * self.options.norm + embedding * self.options.head

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model itself, with the top unfrozen; see `FullAdapter.apply`."""
        super().apply(model, facts, generator)
        model.freeze()
        modules = dict(model.named_modules())
        tops = [modules[f"{facts.layer_path}.{facts.layers - 1 - place}"] for place in range(self.options.layers)]
        tops += [modules[f"{facts.body}.norm"]] if self.options.norm else []
        tops += [modules.get(facts.head.module) or modules[f"{facts.body}.embed_tokens"]] if self.options.head else []
        for module in tops:
            module.unfreeze()
        return model


def held(adapter: Any, own: Mapping[str, Any], stack: Stack) -> dict[str, Any] | None:
    """An engine's weights with a weighted sum of artifacts, of any rank, instead of its own adapter; None if the
    engine's layers cannot compute that.

    Args:
        own: the weights that the engine trains.

    Raises:
        UserError: an artifact is of another model.
    """
    import mlx.core as mx

    ranks: dict[str, list[tuple[Any, Any]]] = {}
    for folder, share in stack:
        additions = adapter.additions(folder)
        if additions is None or any(f"{path}.lora_a" not in own for path in additions):
            return None
        for path, of in additions.items():
            mine = own[f"{path}.lora_a"].shape[1], len(own[f"{path}.lora_b"])
            if (of.a.shape[1], len(of.b)) != mine:
                raise UserError(f"{folder}: {path} has other sizes than the model", action=OTHER)
            ranks.setdefault(path, []).append((of.a, of.b * (share * of.scale / adapter.options.scale)))
    made = dict(own)
    for name in own:
        path, _, side = name.rpartition(".")
        if side == "lora_b":
            a, b = zip(*ranks[path], strict=True) if path in ranks else ((own[f"{path}.lora_a"],), (own[name] * 0,))
            made |= {f"{path}.lora_a": mx.concatenate(list(a)), name: mx.concatenate(list(b), axis=1)}
    return {name: array.astype(mx.float32) for name, array in made.items()}


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An artifact's config, and its arrays by their names in the model.

    Raises:
        UserError: the folder has none.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not an adapter that can be read: {error}", action=OTHER) from error
    return saved, {name.removeprefix(PREFIX): array for name, array in _load(folder / WEIGHTS).items()}


def check_plain(saved: Mapping[str, Any], folder: Path) -> None:
    """Check that all matrices of an adapter have one rank and scale.

    Raises:
        UserError: its config names several.
    """
    if special := special_setting(saved):
        raise UserError(f"{folder}: it was made with {special}, which MLX does not compute", action=BY_TORCH)


def _added(model: Any) -> dict[str, Any]:
    """The adapter's weights, by their names in an artifact without `PREFIX`."""
    from finetooth_mlx.arrays import named
    from finetooth_mlx.heads import is_head

    trained = named(model.trainable_parameters())
    return {_peft_name(name): array for name, array in trained.items() if not is_head(name)}


def _peft_name(name: str) -> str:
    path, _, side = name.rpartition(".")
    return f"{path}.{SIDES[side]}.weight" if side in SIDES else name


def _paths(tensors: Mapping[str, Any]) -> set[str]:
    return {name.partition(".lora_")[0] for name in tensors}


def _check_paths(model: Any, tensors: Mapping[str, Any]) -> None:
    odd = sorted(path for path in _paths(tensors) if f"{path}.weight" not in model.source.names)
    if odd and f"{odd[0]}.weight" != f"{HEAD}.weight":
        raise PlanError(
            f"adapter: mlx-lm calls a module {odd[0]}; the model's files, by whose names peft looks, have none like it",
            action="leave it out of adapter.targets, or set backend: torch",
        )


def write_tensors(file: Path, tensors: Mapping[str, Any]) -> None:
    import mlx.core as mx

    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: mx.contiguous(array) for name, array in tensors.items()}
    mx.save_safetensors(str(file), contiguous, metadata={"format": "pt"})


def _load(file: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is missing, or not an adapter.
    """
    import mlx.core as mx

    try:
        tensors: Any = mx.load(str(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}", action=OTHER) from error
    return dict(tensors)


def _in_order(names: Sequence[str], path: str) -> tuple[bool, list[int], int, str]:
    """Sort paths by layer, then in the family's order of modules, the head last. So a seed draws the same numbers as
    with torch.

    Args:
        names: `ModelFacts.linear_targets`.
    """
    layers = [int(part) for part in path.split(".") if part.isdigit()]
    place = next((i for i, name in enumerate(names) if path.endswith(f".{name}")), len(names))
    return not layers, layers, place, path
