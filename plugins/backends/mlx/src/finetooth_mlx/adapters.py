"""The adapters `lora` and `full` for MLX: what trains, and artifacts in the layouts of peft and transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, NoOptions, PlanError, UserError
from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.protocols import ModelFacts, ModelInfo
from finetooth_modelfiles.low_rank import LowRankOptions

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the paths of a model's modules."""
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
OTHER = "name the artifact of a run with this model and adapter"


class LoraOptions(LowRankOptions):
    """Options of `lora`."""

    @property
    def scale(self) -> float:
        """Factor on the addition."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class LoraAdapter(AdapterBase):
    """`protocols.Adapter` over modules of MLX; the chosen ones are replaced by `LowRankLinear`, paths stay."""

    options: LoraOptions

    @property
    def capabilities(self) -> frozenset[str]:
        """See `protocols.Adapter`."""
        return frozenset({"disable", "draws"} if self.options.dropout else {"disable"})

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """`rank * (inputs + outputs)` a module; exact for layers built like Llama's."""
        from finetooth_modelfiles.sizes import shapes
        from finetooth_modelfiles.targets import resolve

        sizes = shapes(facts)
        chosen = resolve(self.options.targets, facts, tuple(sizes)).modules
        return sum(self.options.rank * sum(sizes[path]) for path in chosen)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """Put the layers in place: A drawn uniformly from +-1/sqrt(inputs), B zero.

        Raises:
            RecipeError: a target matches nothing.
        """
        from finetooth_modelfiles.targets import resolve
        from mlx.utils import tree_unflatten

        from finetooth_mlx.dropout import Draws
        from finetooth_mlx.low_rank import LowRankLinear, is_linear

        linear = {path: module for path, module in model.named_modules() if is_linear(module)}
        chosen = resolve(
            self.options.targets, facts, tuple(sorted(linear, key=partial(_in_order, facts.linear_targets)))
        ).modules
        model.freeze()
        model.draws = Draws()
        made = [
            (
                path,
                LowRankLinear(
                    linear[path], self.options.rank, self.options.scale, self.options.dropout, path, model.draws,
                    generator,
                ),
            )
            for path in chosen
        ]  # fmt: skip
        model.update_modules(tree_unflatten(made))
        for _, layer in made:
            layer.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """While entered, the model computes as its base."""
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
            PlanError: a module of mlx-lm's model has another path in the model's own files, where peft would look.
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
            "target_modules": sorted({name.rsplit(".", 2)[0] for name in tensors}),
            "task_type": "CAUSAL_LM",
            "use_rslora": options.rslora,
            **heads.peft_settings(model),
        }
        tensors |= heads.classifier_tensors(model)
        _write(folder / WEIGHTS, {PREFIX + name: tensor for name, tensor in tensors.items()})
        heads.write_critic(model, folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def restore(self, model: Any, folder: Path) -> None:
        """Take the addition back from an artifact of peft's layout, wherever it was made.

        Raises:
            UserError: it is not an adapter, or one of another rank, scale or choice of modules.
        """
        import mlx.core as mx

        from finetooth_mlx import heads
        from finetooth_mlx.arrays import named, nested

        saved, tensors = read_adapter(folder)
        options = self.options
        wanted = {"r": ("rank", options.rank), "lora_alpha": ("alpha", options.resolved_alpha)}
        wanted |= {"use_rslora": ("rslora", options.rslora), "use_dora": ("dora", False)}
        for setting, (option, value) in wanted.items():
            there = saved.get(setting, False if isinstance(value, bool) else None)
            if there != value:
                raise UserError(
                    f"{folder}: {option} is {there} there and {value} here", action=f"set adapter.{option} as it was"
                )
        heads.take_head(model, tensors, folder)
        mine = _added(model)
        _check_same(folder, {n: t.shape for n, t in tensors.items()}, {n: t.shape for n, t in mine.items()})
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
            PlanError: mlx-lm's class joins or renames what the model's files hold, so that no artifact in their layout
                could be written.
        """
        from finetooth_mlx.arrays import named

        mine = set(named(model.parameters()))
        theirs = {name for name in model.source.names if not name.endswith("rotary_emb.inv_freq")}
        if mine - theirs or (theirs - mine) - {"lm_head.weight"}:
            odd = min(mine ^ theirs)
            raise PlanError(
                f"adapter: full cannot write this model in transformers' layout from MLX: {odd} is only on one side",
                action="choose adapter: lora, or set backend: torch",
            )
        model.unfreeze()
        return model

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder: config and safetensors."""
        from finetooth_mlx import heads
        from finetooth_mlx.arrays import DTYPES, named

        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "generation_config.json"):
            if (model.source.folder / name).is_file():
                shutil.copyfile(model.source.folder / name, folder / name)
        arrays = {name: array for name, array in named(model.parameters()).items() if not heads.is_head(name)}
        if of_head := heads.classifier_tensors(model):  # a classifier has no head for words
            arrays = {name: array for name, array in arrays.items() if not name.startswith("lm_head.")} | of_head
        kinds = {array.dtype for array in arrays.values()}
        word = {DTYPES["fp32"]: "float32", DTYPES["bf16"]: "bfloat16", DTYPES["fp16"]: "float16"}[min(kinds, key=str)]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = {name: value for name, value in config.items() if name not in ("torch_dtype", "dtype")}
        config |= heads.classifier_settings(model, config, model.pad_id)
        text = json.dumps({**config, "dtype": word}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        _write(folder / "model.safetensors", arrays)
        heads.write_critic(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the weights back.

        Raises:
            UserError: the artifact is of another model.
        """
        from finetooth_mlx import heads
        from finetooth_mlx.arrays import named, nested

        tensors = _load(folder / "model.safetensors")
        heads.take_head(model, tensors, folder)
        mine = {name: array for name, array in named(model.trainable_parameters()).items() if not heads.is_head(name)}
        if heads.classifier_tensors(model):
            mine = {name: array for name, array in mine.items() if not name.startswith("lm_head.")}
        _check_same(folder, {n: t.shape for n, t in tensors.items()}, {n: t.shape for n, t in mine.items()})
        model.update(nested({name: tensors[name].astype(array.dtype) for name, array in mine.items()}))


def build_lora(options: LoraOptions, context: Context) -> LoraAdapter:
    """Builder of the adapter `lora`."""
    return LoraAdapter(options)


def build_full(options: NoOptions, context: Context) -> FullAdapter:
    """Builder of the adapter `full`."""
    return FullAdapter()


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of an artifact, and its arrays by the names they have in the model.

    Raises:
        UserError: the folder has none.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not an adapter that can be read: {error}", action=OTHER) from error
    return saved, {name.removeprefix(PREFIX): array for name, array in _load(folder / WEIGHTS).items()}


def _added(model: Any) -> dict[str, Any]:
    """What an adapted model adds, by the names it has in an artifact but for `PREFIX`."""
    from finetooth_mlx.arrays import named
    from finetooth_mlx.heads import is_head

    trained = named(model.trainable_parameters())
    return {_peft_name(name): array for name, array in trained.items() if not is_head(name)}


def _peft_name(name: str) -> str:
    path, _, side = name.rpartition(".")
    return f"{path}.{SIDES.get(side, side)}.weight"


def _check_paths(model: Any, tensors: Mapping[str, Any]) -> None:
    paths = {name.rsplit(".", 2)[0] for name in tensors}
    odd = sorted(path for path in paths if f"{path}.weight" not in model.source.names)
    if odd and f"{odd[0]}.weight" != "lm_head.weight":
        raise PlanError(
            f"adapter: mlx-lm calls a module {odd[0]}; the model's files, by whose names peft looks, have none like it",
            action="leave it out of adapter.targets, or set backend: torch",
        )


def _check_same(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: names or shapes differ.
    """
    for name in sorted(theirs.keys() ^ mine.keys()):
        where = "only in the artifact" if name in theirs else "missing in the artifact"
        raise UserError(f"{folder}: {name} is {where}", action="use the adapter.targets of the run it comes from")
    for name, shape in mine.items():
        if theirs[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(theirs[name])}, the model's {tuple(shape)}",
                action="use the model and adapter of the run it comes from",
            )


def _write(file: Path, tensors: Mapping[str, Any]) -> None:
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


def _in_order(names: Sequence[str], path: str) -> tuple[list[int], int, str]:
    """Sorts paths by layer and, inside, as the family names its modules: one seed then draws what it draws for torch.

    Args:
        names: `ModelFacts.linear_targets`.
    """
    layers = [int(part) for part in path.split(".") if part.isdigit()]
    place = next((i for i, name in enumerate(names) if path.endswith(f".{name}")), len(names))
    return layers, place, path
