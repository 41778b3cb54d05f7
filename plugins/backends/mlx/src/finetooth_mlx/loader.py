"""The loader `mlxlm`: folders of transformers and mlx-lm, and hub ids, by mlx-lm's model classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from finetooth_hooks import Options, RecipeError
from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Loader, ModelInfo, Quantizer, Stored, Tokenizer

QUANTISED = (".scales", ".biases", "_scales")
"""Suffixes of the tensors that belong to a quantised weight."""
PUBLISHED = {"bits": 4, "group_size": 32, "mode": "mxfp4"}
"""The format in which gpt-oss's experts are published."""
MODES = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
"""Bits and group sizes that MLX supports, by mode."""


class MlxOptions(Options):
    """Options of `mlxlm`."""

    revision: str | None = None
    """Branch, tag or commit of a hub id; null is the main branch."""


@dataclass(frozen=True)
class Source:
    """The source of a loaded model; the attribute `source` of the module.

    Attributes:
        folder: its folder, or its single file.
        config: in transformers' shape.
        names: tensors in its files.
    """

    folder: Path
    config: Mapping[str, Any]
    names: frozenset[str]


def build(options: MlxOptions, context: Context) -> MlxLoader:
    """Builder of the loader `mlxlm`."""
    if find_spec("torch") is None:  # which transformers would print, and is as it should be
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from finetooth_modelfiles.reading import ModelFiles

    return MlxLoader(ModelFiles(context, options.revision))


class MlxLoader(LoaderBase):
    """See `finetooth_hooks.protocols.Loader`.

    Args:
        files: reads configs and tokenizers.
    """

    def __init__(self, files: Any) -> None:
        self._files = files

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes, from the headers of a folder's files, or from a hub id's model built without memory."""
        return self._described(reference, weights=True)

    def sketch(self, reference: str) -> ModelInfo:
        return self._described(reference, weights=False)

    def _described(self, reference: str, *, weights: bool) -> ModelInfo:
        from finetooth_modelfiles import checkpoint
        from finetooth_modelfiles.reading import locate

        from finetooth_mlx.configs import mlx_config

        config = self._files.config(reference)
        described = config.to_dict()
        made = mlx_config(described, reference)
        _check_bits(reference, described)
        folder = Path(locate(reference))
        stored = stored_as(described)
        published = str(folder.absolute()) if folder.is_dir() else reference
        if not (folder.is_dir() and weights):
            parameters = _count(made, reference)
            revision = str(getattr(config, "_commit_hash", None) or self._files.revision or "")
            size = int(parameters * (2.0 if stored is None else stored.bytes_per_weight))
            return ModelInfo(
                reference, "mlxlm", str(config.model_type), described, parameters, size, (), revision,
                None if stored is None else size, stored, published,
                contents={} if folder.is_dir() else self._files.contents(reference),
            )  # fmt: skip
        on_disk = checkpoint.read(folder)
        numbers, few = _counted(reference, checkpoint.places(folder), described)
        return ModelInfo(
            reference, "mlxlm", str(config.model_type), described, numbers, on_disk.bytes, on_disk.files, "",
            None if stored is None else on_disk.bytes, stored, published, few, contents=self._files.contents(reference),
        )  # fmt: skip

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"write"})

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """See `protocols.Loader`; quantised weights are dequantised."""
        write_plain(self, reference, folder, precision=precision, of=of)

    def tokenizer(self, reference: str) -> Tokenizer:
        """The model's tokenizer, see `ModelFiles.tokenizer`."""
        made: Tokenizer = self._files.tokenizer(reference)
        return made

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None
    ) -> Any:
        """mlx-lm's model with its weights, in evaluation mode.

        Raises:
            RecipeError: another framework than mlx, or files that do not fit the model.
        """
        from finetooth_modelfiles import checkpoint
        from mlx_lm.utils import load_model

        from finetooth_mlx.configs import classes_of, mlx_config

        check_framework("mlxlm", framework)
        described = self._files.config(reference).to_dict()
        made = mlx_config(described, reference)
        with self._files.reading(reference, part="weights") as located:
            folder = self._files.folder(located)
            names = frozenset(checkpoint.places(folder))
            (kind, arguments), brought = classes_of(made, reference), dict[str, Any]()
            model, _ = load_model(
                folder,
                lazy=True,
                model_config=made,
                get_model_classes=lambda config: (_parting(kind, brought), arguments),
            )
            return loaded(model, Source(folder, described, names), precision, quantizer, brought)


def check_framework(name: str, framework: str) -> None:
    """Checks that the model is loaded for mlx.

    Raises:
        RecipeError: it is not mlx.
    """
    if framework != "mlx":
        raise RecipeError(
            "model", f"loader {name} loads for mlx, not for {framework}",
            action="leave model.loader out, or set backend: mlx; where this is a run of mlx's, ft merge RUN and name "
            "the folder that it writes",
        )  # fmt: skip


def loaded(
    model: Any, source: Source, precision: str, quantizer: Quantizer | None, brought: Mapping[str, Any] | None = None
) -> Any:
    """A model with its weights, ready to compute.

    Args:
        brought: tensors of a scalar head from its files.
    """
    import mlx.core as mx

    from finetooth_mlx.completing import completed
    from finetooth_mlx.folding import cast, stored

    cast(model, precision)
    mx.eval(model.parameters())
    model.source, model.brought_head = source, dict(brought or {})
    return stored(completed(model, source.config), quantizer)


def write_plain(loader: Any, reference: str, folder: Path, *, precision: str, of: Loader | None) -> None:
    """Write the model that `of`, or this loader, loads as plain numbers, with its tokenizer."""
    from finetooth_mlx.folding import cast, plain, write_model

    model = (of or loader).load(reference, framework="mlx", precision=precision, device="")
    write_model(cast(plain(model), precision), folder)
    loader.tokenizer(reference if of is None else str(model.source.folder)).save(folder)


def _parting(model: Any, brought: dict[str, Any]) -> Any:
    """mlx-lm's class of a model with a scalar head in its files: it keeps that head apart and needs no language-model
    head."""

    def sanitize(self: Any, weights: dict[str, Any]) -> dict[str, Any]:
        import mlx.core as mx

        from finetooth_mlx.completing import with_stacked_experts

        brought.update({name: weights.pop(name) for name in [name for name in weights if name.startswith("score.")]})
        weights = with_stacked_experts(weights) if model.__module__.endswith(".gpt_oss") else weights
        made: dict[str, Any] = model.sanitize(self, weights) if hasattr(model, "sanitize") else weights
        if brought and "lm_head" in self and "lm_head.weight" not in made:
            made["lm_head.weight"] = mx.zeros(self.lm_head.weight.shape)  # it has not been trained
        return made

    return type(model.__name__, (model,), {"sanitize": sanitize})


def _bits_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The storage of quantised weights that MLX computes with directly; empty for plain numbers and formats of other
    libraries."""
    own, published = config.get("quantization"), config.get("quantization_config")
    if isinstance(own, Mapping):
        return own
    if config.get("model_type") == "gpt_oss" and isinstance(published, Mapping):
        return PUBLISHED if published.get("quant_method") == "mxfp4" else {}
    return {}


def stored_as(config: Mapping[str, Any]) -> Stored | None:
    """The quantisation of an mlx-lm folder; None: plain numbers."""
    settings = _bits_of(config)
    if not settings:
        return None
    bits, group = int(settings["bits"]), int(settings["group_size"])
    scales = 4 / group if settings.get("mode", "affine") == "affine" else 1 / group
    return Stored(f"{settings.get('mode', 'affine')}, {bits} bits in groups of {group}", bits / 8 + scales)


def _check_bits(reference: str, config: Mapping[str, Any]) -> None:
    """
    Raises:
        RecipeError: the weights are in a format of another library, or MLX does not support their number of bits.
    """
    foreign, own = config.get("quantization_config"), _bits_of(config)
    if own:
        mode = str(own.get("mode", "affine"))
        bits, groups = MODES.get(mode, ((), ()))
        if own.get("bits") not in bits or own.get("group_size") not in groups:
            raise RecipeError(
                "model",
                f"{reference} has weights of {own.get('bits')} bits in groups of {own.get('group_size')} ({mode}), "
                "which MLX does not compute with",
                action="convert the model again, with mlx_lm.convert -q --q-bits 4 --q-group-size 64",
            )
        return
    if foreign:
        method = foreign.get("quant_method", "a format of its own") if isinstance(foreign, Mapping) else foreign
        raise RecipeError(
            "model",
            f"{reference} has weights in fewer bits by {method}, which the MLX backend does not read",
            action="name the same model in full precision, or a folder that mlx_lm.convert made",
        )


def _counted(reference: str, places: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    """The number of parameters, and how many are quantised.

    Raises:
        RecipeError: a weight is stored in other bits than the config says.
    """
    settings = _bits_of(config)
    whole = few = 0
    for name, place in places.items():
        if name.endswith(QUANTISED):
            continue
        if name.endswith("_blocks"):  # gpt-oss's experts as published: two numbers per byte
            few += 2 * prod(place.shape)
            whole += 2 * prod(place.shape)
            continue
        path = name.removesuffix(".weight")
        own = settings.get(path, {})
        size = prod(place.shape)
        if f"{path}.scales" in places:
            form = {**settings, **(own if isinstance(own, Mapping) else {})}
            size = size * 32 // int(form["bits"])
            if size != prod(places[f"{path}.scales"].shape) * int(form["group_size"]):
                raise RecipeError(
                    "model", f"{reference}: {path} is not stored in the bits of config.json, {form['bits']} in groups "
                    f"of {form['group_size']}", action="convert the model again",
                )  # fmt: skip
            few += size
        whole += size
    return whole, few


def _count(config: Mapping[str, Any], reference: str) -> int:
    """The parameters of a model built without memory: MLX makes an array only when it is read."""
    from finetooth_mlx.arrays import named
    from finetooth_mlx.configs import classes_of

    model, arguments = classes_of(config, reference)
    return sum(int(array.size) for array in named(model(arguments.from_dict(config)).parameters()).values())
