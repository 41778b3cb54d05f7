"""The loader `transformers`: config, tokenizer and weights through the library's own auto classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from finetooth_hooks import RecipeError
from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Loader, ModelInfo, ModelTensors, Quantizer
from finetooth_toolbox.files.contents import FileContents
from finetooth_toolbox.files.hub import without_retries
from finetooth_toolbox.saved_heads import head_of
from finetooth_toolbox.text.strict_json import received
from finetooth_toolbox.text.tokenizers import FastTokenizer
from finetooth_torchshared.assembled import CannotAssemble
from finetooth_torchshared.classifiers import as_language_model, classifier_class
from finetooth_torchshared.model_tensors import as_stored
from finetooth_torchshared.packed_files import Packing, packing_of
from finetooth_torchshared.plain_modules import sizes_of
from finetooth_torchshared.quantised import quantise, stores_apart

from finetooth_transformers import checkpoint
from finetooth_transformers.architectures import register
from finetooth_transformers.assembling import Tensors, assemble, by_tensor
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.config_bounds import check_config
from finetooth_transformers.failures import explained
from finetooth_transformers.merge_dropout import without_dropout
from finetooth_transformers.padding import choose_pad
from finetooth_transformers.quantised import check_readable, quantization_of, stored_as, turned_back

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
MODELS: Any = transformers.AutoModelForCausalLM
MULTIMODAL: Any = transformers.AutoModelForMultimodalLM
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class TransformersLoader(LoaderBase):
    """Loads folders and hub ids."""

    capabilities = frozenset({"modules", "tensors", "widen", "write"})

    def __init__(self, options: TransformersOptions, context: Context) -> None:
        self._options, self._context = options, context

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
            RecipeError: there is no config, or the hub cannot be reached.
        """
        return self._described(reference, weights=False)

    def _described(self, reference: str, *, weights: bool) -> ModelInfo:
        with self._reading(reference) as located:
            if (raw := Path(located) / "config.json").is_file():
                check_config(received(raw.read_bytes()), reference)
            config = self._config(located)
        described = config.to_dict()
        check_config(described, reference)
        kind, stored = str(config.model_type), stored_as(described)
        folder = Path(_locate(reference))
        if self._options.revision is not None and folder.is_dir():
            raise RecipeError(
                "model.loader.revision",
                f"{reference} is a folder, and only hub ids have revisions",
                action="leave it out, or name the hub id",
            )
        if folder.is_dir() and weights:
            found = checkpoint.read(folder)
            parameters = found.parameters if stored is None else self._count(reference, config)[0]
            size, files, revision, experts = found.bytes, found.files, "", found.experts
            contents = FileContents(checkpoint.contents(folder))
        else:
            parameters, experts = self._count(reference, config)
            each = BYTES.get(str(config.dtype).removeprefix("torch."), 4) if stored is None else stored.bytes_per_weight
            size = int(parameters * each)
            files, revision = (), str(getattr(config, "_commit_hash", None) or self._options.revision or "")
            contents = FileContents({} if folder.is_dir() else partial(self._fetched, reference))
        resident = size if stored is not None and not turned_back(described) else None
        packing = packing_of(quantization_of(described), reference)
        if stored is not None and packing is None:
            check_readable(reference, quantization_of(described))
        packed = Tensors.of(folder).packed(packing).values() if packing is not None and folder.is_dir() else ()
        published = str(folder.absolute()) if folder.is_dir() else reference
        return ModelInfo(
            reference, "transformers", kind, described, parameters, size, files, revision, resident, stored, published,
            sum(packed), experts if stored is None else 0, contents=contents,
        )  # fmt: skip

    def _fetched(self, reference: str) -> dict[str, Path]:
        """The files of a hub id that are on this machine, by name; none before they are fetched."""
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(reference, revision=self._options.revision, local_files_only=True))
            return checkpoint.contents(folder)
        except (OSError, ValueError, RecipeError):
            return {}

    def tokenizer(self, reference: str) -> FastTokenizer:
        """The model's tokenizer; one without a pad token gets one that text does not produce, and one that draws at
        random no longer does.

        Raises:
            RecipeError: there is none, or it has no fast implementation.
        """
        with self._reading(reference, part="tokenizer") as located:
            tokenizer = transformers.AutoTokenizer.from_pretrained(located, **self._arguments())
        if not tokenizer.is_fast:
            raise RecipeError(
                "model",
                f"{reference} has only a slow tokenizer ({type(tokenizer).__name__}), which gives no character offsets",
                action="convert it to a tokenizer.json with transformers",
            )
        if tokenizer.pad_token_id is None:
            self._context.note(choose_pad(tokenizer))
        if said := without_dropout(tokenizer):
            self._context.note(said)
        return FastTokenizer(tokenizer)

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None
    ) -> Any:
        """The model with its weights, in eval mode. Of a reward model (a classifier with one label, or with two for
        each token) the language model without a trained head for words, its own head beside it as `score`.

        Raises:
            RecipeError: another framework than torch, weights that are missing from the files, or whatever
                transformers cannot load.
        """
        _check_framework(framework)
        with self._reading(reference) as located, _quiet():
            config = self._config(located)
            packing = packing_of(quantization_of(config.to_dict()), reference)
            apart = quantizer is not None and stores_apart(quantizer)
            if apart or packing is not None:
                found = self._assembled(located, config, precision, device, quantizer, packing)
                if found is not None:
                    return found
            head = head_of(config.to_dict())
            made = _class(config) if head is None else classifier_class(config, head.exported_as)
            model, found = made.from_pretrained(
                located,
                dtype=PRECISIONS[precision],
                use_safetensors=True,
                output_loading_info=True,
                **self._arguments(),
            )
        # transformers fills what a file lacks with random numbers
        if lost := sorted(found["missing_keys"]):
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
        """See `protocols.Loader`; None for classifiers and for what only a library reads.

        Raises:
            RecipeError: as `load`.
        """
        import torch

        _check_framework(framework)
        with self._reading(reference) as located, _quiet():
            config = self._config(located)
            given = quantization_of(config.to_dict())
            packing = packing_of(given, reference)
            if (given and packing is None) or head_of(config.to_dict()) is not None:
                return None
            folder = self._folder(located)
            found = by_tensor(
                folder, copy.deepcopy(config), _class(config), dtype=getattr(torch, PRECISIONS[precision]),
                packing=packing, trust_remote_code=self._options.trust_remote_code,
            )  # fmt: skip
            if found is not None and (folder / "generation_config.json").is_file():
                found.model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder))
        return found if found is None or quantizer is None else as_stored(found, quantizer)

    def _config(self, located: str) -> Any:
        """The config, once the family that brings its architecture has made it known.

        Raises:
            PluginError: that family cannot.
        """
        register(self._context.catalog, lambda: _model_type(located, self._arguments()))
        return transformers.AutoConfig.from_pretrained(located, **self._arguments())

    def modules(self, reference: str) -> Mapping[str, tuple[int, int]]:
        """(inputs, outputs) of linear modules and embeddings by path; the model is built without memory."""
        with self._reading(reference) as located:
            model = self._unfilled(reference, self._config(located))
        found = {path: sizes_of(module) for path, module in model.named_modules()}
        return {path: sizes for path, sizes in found.items() if sizes is not None}

    def _folder(self, located: str) -> Path:
        """Where the files are; those of a hub id are fetched."""
        folder = Path(located)
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.safetensors.index.json", "*.json"]
        return Path(snapshot_download(located, revision=self._options.revision, allow_patterns=wanted))

    def _assembled(
        self, located: str, config: Any, precision: str, device: str, quantizer: Quantizer | None,
        packing: Packing | None,
    ) -> Any:  # fmt: skip
        """The model put together tensor by tensor; None where it must be loaded whole first."""
        import torch

        if head_of(config.to_dict()) is not None:
            return None
        try:
            return assemble(
                self._folder(located), copy.deepcopy(config), _class(config),
                dtype=getattr(torch, PRECISIONS[precision]), device=device, quantizer=quantizer, packing=packing,
                trust_remote_code=self._options.trust_remote_code,
            )  # fmt: skip
        except CannotAssemble as error:
            if packing is not None and quantizer is None:
                raise RecipeError(
                    "model", f"{located} is packed, and not as its model is built: {error}", action="fetch it again"
                ) from error
            return None

    @contextmanager
    def _reading(self, reference: str, part: str = "config.json") -> Iterator[str]:
        """Where the model is; inside, failures are explained, and a hub that cannot be reached is tried only once."""
        with explained(reference, part=part):
            located = _locate(reference)
            if Path(located).is_dir():
                yield located
                return
            with without_retries() as why:
                yield located
        if why:
            self._context.note(
                f"the model hub cannot be reached ({why}): {reference} is the copy on this machine",
                topic=f"offline:{reference}",
            )

    def _arguments(self) -> dict[str, Any]:
        revision = {} if self._options.revision is None else {"revision": self._options.revision}
        return {"trust_remote_code": self._options.trust_remote_code, **revision}

    def _count(self, reference: str, config: Any) -> tuple[int, int]:
        """Parameters, and how many of them are of experts that are held as one weight."""
        from finetooth_torchshared.stored_experts import weights_of_experts

        model = self._unfilled(reference, config)
        experts = sum(one.numel() for module in model.modules() for one in weights_of_experts(module).values())
        return sum(parameter.numel() for parameter in model.parameters()), experts

    def _unfilled(self, reference: str, config: Any) -> Any:
        """The model without memory for its weights."""
        import torch

        plain = copy.deepcopy(config)
        if quantization_of(plain.to_dict()):
            plain.quantization_config = None
        with explained(reference), torch.device("meta"):
            return _class(plain).from_config(plain, trust_remote_code=self._options.trust_remote_code)


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
            "model", f"loader transformers loads for torch, not for {framework}", action="set backend: torch"
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


def _locate(reference: str) -> str:
    """The folder that holds the model: the one named, or `artifact` in it (a run folder); else the hub id as it is.

    Raises:
        RecipeError: a path that holds nothing, or an adapter without its base.
    """
    folder = Path(reference)
    for candidate in (folder, folder / "artifact"):
        if (candidate / "config.json").is_file():
            return str(candidate)
        if (candidate / "adapter_config.json").is_file():
            raise RecipeError(
                "model", f"{candidate} holds an adapter, not a model", action="merge it into its base first: ft merge"
            )
    if folder.is_dir():
        raise RecipeError("model", f"the folder {reference} has no config.json", action="name the folder of a model")
    if folder.exists() or reference.startswith((".", "/", "~")):
        raise RecipeError(
            "model", f"{reference} is no folder", action="name the folder of a model, or a hub id org/name"
        )
    return reference
