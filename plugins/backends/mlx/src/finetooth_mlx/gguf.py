"""The loader `gguf` for MLX: GGUF files by mlx-lm's model classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetooth_hooks import RecipeError
from finetooth_hooks.protocols import Loader, ModelInfo, Quantizer
from finetooth_modelfiles.gguf.loader import GgufReader
from finetooth_modelfiles.gguf.reference import find

from finetooth_mlx.configs import classes_of, mlx_config
from finetooth_mlx.loader import Source, check_framework, loaded, write_plain


class GgufLoader(GgufReader):
    """Loads a GGUF file; see `finetooth_hooks.protocols.Loader`."""

    capabilities = frozenset({"write"})

    def describe(self, reference: str) -> ModelInfo:
        """See `GgufReader.describe`.

        Raises:
            RecipeError: also if mlx-lm has no class for this model, or the file's weight layout is not transformers':
                mlx-lm's classes split only the weights of a folder.
        """
        from finetooth_modelfiles.gguf.architectures import architecture_of

        info = super().describe(reference)
        file = self.container(find(reference).path)
        architecture = architecture_of(file)
        if architecture.changes or architecture.stated_weights:
            raise RecipeError(
                "model",
                f"{file.path} holds a model of architecture {file.architecture!r}, which is not read from GGUF on MLX",
                action="load it from its original folder",
            )
        mlx_config(_whole(info.config), reference)
        return info

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """See `protocols.Loader`."""
        write_plain(self, reference, folder, precision=precision, of=of)

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None
    ) -> Any:
        """mlx-lm's model with the file's weights, rounded to the precision, in evaluation mode.

        Raises:
            RecipeError: another framework than mlx, or a file that does not fit the model.
        """
        import mlx.core as mx
        from finetooth_modelfiles.gguf.architectures import parameter_names
        from finetooth_modelfiles.gguf.dequantising import parameter_numbers

        from finetooth_mlx.arrays import DTYPES

        check_framework("gguf", framework)
        path = find(reference).path
        file, values = self.container(path), super().describe(reference).config
        described = _whole(values)
        made = mlx_config(described, reference)
        kind, arguments = classes_of(made, reference)
        model, weights = kind(arguments.from_dict(made)), {}
        for parameter, parts in parameter_names(file).items():
            own = parameter.replace(".experts.", ".switch_mlp.")  # mlx-lm's name of a stack of experts
            weights[own] = mx.array(parameter_numbers(file, parts, values)).astype(DTYPES[precision])
            mx.eval(weights[own])  # only one tensor at a time is in fp32
        source = Source(path, described, frozenset(weights))
        try:
            model.load_weights(list((model.sanitize(weights) if hasattr(model, "sanitize") else weights).items()))
        except ValueError as error:
            what = " ".join(str(error).split())
            raise RecipeError("model", f"{path}: {what}", action="fetch or convert it again") from error
        return loaded(model, source, precision, quantizer)


def _whole(values: Any) -> dict[str, Any]:
    """A file's config with transformers' defaults."""
    from transformers import AutoConfig

    made: dict[str, Any] = AutoConfig.for_model(**values).to_dict()
    return made
