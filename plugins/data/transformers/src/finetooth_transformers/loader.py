"""The loader `transformers`: config, tokenizer and weights through the library's own auto classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from finetooth_hooks import RecipeError
from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Loader, ModelInfo, ModelTensors, Quantizer
from finetooth_modelfiles import checkpoint
from finetooth_modelfiles.failures import explained
from finetooth_modelfiles.reading import ModelFiles, locate
from finetooth_toolbox.saved_heads import head_of
from finetooth_toolbox.text.tokenizers import FastTokenizer
from finetooth_torchshared.assembled import CannotAssemble
from finetooth_torchshared.classifiers import as_language_model, classifier_class
from finetooth_torchshared.model_tensors import as_stored
from finetooth_torchshared.packed_files import packing_of
from finetooth_torchshared.packed_modules import Packing
from finetooth_torchshared.plain_modules import sizes_of
from finetooth_torchshared.quantised import quantise, stores_apart

from finetooth_transformers.architectures import register
from finetooth_transformers.assembling import Tensors, assemble, by_tensor
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.quantised import check_readable, dequantize, quantization_of, stored_as, turned_back

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
MODELS: Any = transformers.AutoModelForCausalLM
MULTIMODAL: Any = transformers.AutoModelForMultimodalLM
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class TransformersLoader(LoaderBase):
    """Loads folders and hub ids."""

    capabilities = frozenset({"meta", "modules", "tensors", "widen", "write"})

    def __init__(self, options: TransformersOptions, context: Context) -> None:
        self._options = options
        self._files = ModelFiles(context, options.revision, options.trust_remote_code, self._register,
                                 options.rope_scaling, dequantize if options.dequantize else None)  # fmt: skip

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes. A local folder's parameters are counted in its files' headers, a hub id's by building the
        model without memory; no weights are read or fetched.

        Raises:
            RecipeError: nothing is there, it is not a model, or the hub cannot be reached.
        """
        return self._described(reference, weights=True)

    def sketch(self, reference: str) -> ModelInfo:
        """From the config alone: parameters are counted by building the model without memory.

        Raises:
            RecipeError: the config is missing, or the hub cannot be reached.
        """
        return self._described(reference, weights=False)

    def _described(self, reference: str, *, weights: bool) -> ModelInfo:
        config = self._files.config(reference)
        described = config.to_dict()
        kind, stored = str(config.model_type), stored_as(described)
        folder = Path(locate(reference))
        if self._options.revision is not None and folder.is_dir():
            raise RecipeError(
                "model.loader.revision",
                f"{reference} is a folder, and only hub ids have revisions",
                action="leave it out, or name the hub id",
            )
        packing = packing_of(quantization_of(described), reference)
        if stored is not None and packing is None:
            check_readable(reference, quantization_of(described))
        packed = Tensors.of(folder).packed(packing) if packing is not None and folder.is_dir() else frozenset[str]()
        counted = checkpoint.read(folder) if folder.is_dir() and weights else None
        plain = not quantization_of(described)  # of others the files hold scales, too
        of_files = (counted.parameters, counted.experts, 0) if counted and plain else None
        parameters, experts, held = of_files or self._count(reference, config, packed)
        if counted:
            size, files, revision = counted.bytes, counted.files, ""
        else:
            each = BYTES.get(str(config.dtype).removeprefix("torch."), 4) if stored is None else stored.bytes_per_weight
            size = int(parameters * each)
            files, revision = (), str(getattr(config, "_commit_hash", None) or self._options.revision or "")
        resident = size if stored is not None and not turned_back(described) else None
        return ModelInfo(
            reference, "transformers", kind, described, parameters, size, files, revision, resident, stored,
            str(folder.absolute()) if folder.is_dir() else reference, held, experts if stored is None else 0,
            contents=self._files.contents(reference) if weights or not folder.is_dir() else {},
            by_module=self._by_module(config),
        )  # fmt: skip

    def tokenizer(self, reference: str) -> FastTokenizer:
        """The model's tokenizer; see `ModelFiles.tokenizer`.

        Raises:
            RecipeError: the model has no tokenizer, or one without a fast implementation.
        """
        return self._files.tokenizer(reference)

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None,
        meta: bool = False,
    ) -> Any:  # fmt: skip
        """The model with its weights, in eval mode. Of a reward model (a classifier with one label, or with two for
        each token) the language model without a trained head for words, and its own head as `score`.

        Raises:
            RecipeError: another framework than torch, weights that are missing from the files, or whatever
                transformers cannot load.
        """
        _check_framework(framework)
        with self._files.reading(reference) as located, _quiet():
            config = self._files.config_at(located)
            packing = packing_of(quantization_of(config.to_dict()), reference)
            if meta:
                stored = quantizer is not None or packing is not None
                return self._without_weights(reference, config, precision, stored=stored)
            by_parts = stores_apart(quantizer) if quantizer is not None else device != "cpu" and self._by_module(config)
            if by_parts or packing is not None:
                assembled = self._assembled(located, config, precision, device, quantizer, packing)
                if assembled is not None:
                    return assembled
            head = head_of(config.to_dict())
            made = _class(config) if head is None else classifier_class(config, head.exported_as)
            model, info = made.from_pretrained(
                located, config=config, dtype=PRECISIONS[precision], use_safetensors=True, output_loading_info=True,
                **self._files.arguments,
            )  # fmt: skip
        if quantization_of(config.to_dict()).get("dequantize"):
            model._weight_conversions = None  # it would turn them back again when the model is saved
        # transformers fills missing tensors with random numbers
        if lost := sorted(info["missing_keys"]):
            raise RecipeError(
                "model",
                f"{reference} lacks {len(lost)} weights of its model: {', '.join(lost[:3])}",
                action="fetch it again",
            )
        if head is not None:  # a reward model: a language model that carries its head
            model = as_language_model(model, MODELS._model_mapping[type(config)])
        return (model.to(device) if quantizer is None else quantise(model, quantizer, device)).eval()

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """Give a loaded model a row for every token."""
        from finetooth_torchshared.vocabulary import widen

        widen(model, size, new)

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write a model with its tokenizer in transformers' layout."""
        from finetooth_torchshared.model_tensors import write_model

        write_model(of or self, reference, folder, precision=precision)

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        """See `protocols.Loader`; None for classifiers and for formats that only a library reads.

        Raises:
            RecipeError: as `load`.
        """
        import torch

        _check_framework(framework)
        with self._files.reading(reference) as located, _quiet():
            config = self._files.config_at(located)
            quantization = quantization_of(config.to_dict())
            packing = packing_of(quantization, reference)
            if (quantization and packing is None) or head_of(config.to_dict()) is not None:
                return None
            folder = self._files.folder(located)
            model_tensors = by_tensor(
                folder, copy.deepcopy(config), _class(config), dtype=getattr(torch, PRECISIONS[precision]),
                packing=packing, trust_remote_code=self._options.trust_remote_code,
            )  # fmt: skip
            if model_tensors is not None:
                _read_generation_config(model_tensors.model, folder)
        return model_tensors if model_tensors is None or quantizer is None else as_stored(model_tensors, quantizer)

    def _register(self, located: str) -> None:
        """Make the architecture of a model known, where a family brings it.

        Raises:
            PluginError: that family cannot.
        """
        register(self._files.context.catalog, lambda: _model_type(located, self._files.arguments))

    def modules(self, reference: str) -> Mapping[str, tuple[int, int]]:
        """(inputs, outputs) of linear modules and embeddings by path; the model is built without memory."""
        with self._files.reading(reference) as located:
            model = self._unfilled(reference, self._files.config_at(located))
        sizes_by_path = {path: sizes_of(module) for path, module in model.named_modules()}
        return {path: sizes for path, sizes in sizes_by_path.items() if sizes is not None}

    def _by_module(self, config: Any) -> bool:
        """Whether plain numbers go to an accelerator module by module, so that the host never holds all of them. Not
        those of a hub's own code, which may make more of them than its files say, nor a classifier's."""
        described, own_code = config.to_dict(), self._options.trust_remote_code
        return not own_code and not quantization_of(described) and head_of(described) is None

    def _assembled(
        self, located: str, config: Any, precision: str, device: str, quantizer: Quantizer | None,
        packing: Packing | None,
    ) -> Any:  # fmt: skip
        """The model put together tensor by tensor; None where it must be loaded whole first."""
        import torch

        if head_of(config.to_dict()) is not None:
            return None
        folder = self._files.folder(located)
        try:
            model = assemble(
                folder, copy.deepcopy(config), _class(config), dtype=getattr(torch, PRECISIONS[precision]),
                device=device, quantizer=quantizer, packing=packing, trust_remote_code=self._options.trust_remote_code,
            )  # fmt: skip
            _read_generation_config(model, folder)
            return model
        except CannotAssemble as error:
            if packing is not None and quantizer is None:
                raise RecipeError(
                    "model", f"the packed weights of {located} do not fit its model: {error}", action="fetch it again"
                ) from error
            return None

    def _count(self, reference: str, config: Any, packed: frozenset[str]) -> tuple[int, int, int]:
        """Parameters, how many of them are of experts that are held as one weight, and how many of packed modules."""
        from finetooth_torchshared.stored_experts import weights_of_experts

        model = self._unfilled(reference, config)
        experts = sum(weight.numel() for module in model.modules() for weight in weights_of_experts(module).values())
        held = sum(module.weight.numel() for path, module in model.named_modules() if path in packed)
        return sum(parameter.numel() for parameter in model.parameters()), experts, held

    def _without_weights(self, reference: str, config: Any, precision: str, *, stored: bool) -> Any:
        """
        Raises:
            RecipeError: the weights are quantised, or the model has a separate head.
        """
        import torch

        if stored or quantization_of(config.to_dict()) or head_of(config.to_dict()) is not None:
            what = "carries a head of its own" if head_of(config.to_dict()) is not None else "is stored in fewer bits"
            raise RecipeError(
                "model", f"{reference} {what}, so it cannot be built without its weights",
                action="load it with its weights, or name a model of plain numbers",
            )  # fmt: skip
        return self._unfilled(reference, config, dtype=getattr(torch, PRECISIONS[precision])).eval()

    def _unfilled(self, reference: str, config: Any, **given: Any) -> Any:
        """The model without memory for its weights; `dtype` may be given."""
        import torch

        plain = copy.deepcopy(config)
        if quantization_of(plain.to_dict()):
            plain.quantization_config = None
        with explained(reference), torch.device("meta"):
            return _class(plain).from_config(plain, trust_remote_code=self._options.trust_remote_code, **given)


def _model_type(located: str, arguments: dict[str, Any]) -> str:
    return str(transformers.PretrainedConfig.get_config_dict(located, **arguments)[0].get("model_type", ""))


def _class(config: Any) -> Any:
    """The auto class of the model that a config names: one that sees or hears, if that is what it is. Where the config
    names none, one that can be built so is."""
    known = MULTIMODAL._model_mapping.get(type(config), None)
    named = (getattr(config, "architectures", None) or [getattr(known, "__name__", "")])[0]
    return MULTIMODAL if known is not None and known.__name__ == named else MODELS


def _check_framework(framework: str) -> None:
    """
    Raises:
        RecipeError: it is not torch.
    """
    if framework != "torch":
        raise RecipeError(
            "model",
            f"loader transformers loads for torch, not for {framework}",
            action="set backend: torch; for a run that torch trained, call ft merge RUN and name the folder that it "
            "writes",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of the library's own while weights are read."""
    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_generation_config(model: Any, folder: Path) -> None:
    """The sampling settings in a folder, if any."""
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder))
