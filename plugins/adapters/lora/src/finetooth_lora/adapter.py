"""The LoRA adapter: peft's layers, put in place so that module paths of the model stay what they were."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from finetooth_hooks import Context, Options, RecipeError, UserError
from finetooth_hooks.classifiers import HEAD, PEFT_TASKS, as_language_model, kind_of
from finetooth_hooks.protocols import LowRank, ModelFacts, ModelInfo
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from finetooth_lora.merge import merged
from finetooth_lora.sizes import added_parameters
from finetooth_lora.targets import SETTING, resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
NAME = "default"
"""peft's own name for the only adapter of a model."""


class LoraOptions(Options):
    """Options of `lora`."""

    rank: int = Field(default=32, ge=1, le=256)
    """Rank r of the addition B A, 1 to 256."""
    alpha: float | None = Field(default=None, gt=0)
    """The addition is scaled by alpha / rank (with `rslora` by alpha / sqrt(rank)). Default: 2 * rank, so that the
    scale is 2 at any rank; with `rslora` 16."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the addition while training."""
    targets: Literal["all-linear", "attention"] | list[str] = "all-linear"
    """Which modules carry it: `all-linear` (every linear module of the decoder layers), `attention` (those inside
    attention), or a list of names that end a module's path (`q_proj`, `mlp.up_proj`) or regular expressions that match
    whole paths."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (Kalajdzievski, 2023,
    arXiv:2312.03732)."""
    train_new_tokens: bool = True
    """Whether the embeddings of tokens that `model.added_tokens` adds train beside the addition; only their rows do."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (Liu et al., 2024, arXiv:2402.09353)."""

    @property
    def resolved_alpha(self) -> float:
        """`alpha`, or its default."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 2.0 * self.rank


@dataclass(frozen=True)
class LoraAdapter:
    """`protocols.Adapter` over peft.

    The model that `apply` returns is the one it was given, its chosen modules replaced by peft's layers: paths such as
    `model.layers.0` stay valid. The matrices are float32 whatever the base is held in.
    """

    options: LoraOptions

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Parameters of the addition; exact for layers built like Llama's."""
        added = added_parameters(self.options.targets, facts, self.options.rank, dora=self.options.dora)
        return added + self._trained_rows(facts) * facts.hidden_size

    def _trained_rows(self, facts: ModelFacts) -> int:
        """Rows of embedding and head that train."""
        return len(facts.new_tokens) * (1 if facts.tied else 2) if self.options.train_new_tokens else 0

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """Put the layers in place. A is drawn uniformly from +-1/sqrt(inputs) (peft's kaiming uniform), B is zero, so
        the model computes as before; torch's global random state is not touched.

        Raises:
            RecipeError: a target matches nothing.
        """
        paths = tuple(path for path, module in model.named_modules() if _adaptable(module))
        targets = resolve(self.options.targets, facts, paths)
        spelling = targets.spelling if isinstance(targets.spelling, str) else list(targets.spelling)
        config = LoraConfig(
            r=self.options.rank,
            lora_alpha=self.options.resolved_alpha,  # type: ignore[arg-type]  # peft computes with floats as well
            lora_dropout=self.options.dropout,
            target_modules=spelling,
            use_rslora=self.options.rslora,
            use_dora=self.options.dora,
            bias="none",
            task_type="CAUSAL_LM",
            trainable_token_indices=_token_rows(model, facts) if self._trained_rows(facts) else None,
        )
        devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
        try:
            with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
                # peft warns that a shared head is hard to merge; `ft merge` gives it a weight of its own
                warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
                model = inject_adapter_in_model(config, model, NAME)
        except (ValueError, AttributeError) as error:  # the latter where it takes a name for that of fused experts
            said = " ".join(str(error).split()).rstrip(".")
            raise RecipeError(SETTING, f"peft refuses these modules: {said}", action=_other_targets(facts)) from error
        missed = [path for path in targets.modules if not isinstance(model.get_submodule(path), BaseTunerLayer)]
        if missed:  # where names of experts, once modules of their own, are also those of layers without experts
            raise RecipeError(
                SETTING,
                f"peft takes {missed[0].rpartition('.')[2]} for the experts, which this model holds as one weight, and "
                f"leaves {missed[0]} alone",
                action=_other_targets(facts),
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for path in targets.modules:
            _initialise(model.get_submodule(path), generator)
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """While entered, the model computes as its base."""
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def low_rank(self, module: Any) -> LowRank | None:
        """See `protocols.Adapter`; None with DoRA, or while dropout is on."""
        if type(module) is not Linear or self.options.dora or module.merged:
            return None
        if module.disable_adapters:
            return LowRank(module.base_layer)
        if self.options.dropout and module.training:
            return None
        return LowRank(module.base_layer, module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME])

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`; the base is named as the recipe names it."""
        folder.mkdir(parents=True, exist_ok=True)
        # "auto" would ask the model hub whether the vocabulary grew
        state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        config = dict(model.peft_config[NAME].to_dict())
        config.update(base_model_name_or_path=info.reference, inference_mode=True)
        if kind := kind_of(type(model).__name__):  # with a scalar head, which peft keeps beside the addition
            tensors |= {f"base_model.model.{name}": tensor for name, tensor in _head(model).items()}
            config.update(task_type=PEFT_TASKS[kind], modules_to_save=[HEAD])
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        # the order of a set differs between processes; the same run must give the same file
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        # safetensors makes its files private; they are as public as those beside them
        (folder / "adapter_model.safetensors").chmod((folder / "adapter_config.json").stat().st_mode)

    def fold(self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None) -> Any:
        """See `protocols.Adapter`: the base with the addition folded in by peft's own merge.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        made = type(model)
        whole = merged(model, folder, pad_id)
        if kind_of(type(whole).__name__):
            whole = as_language_model(whole, made)
        return whole.requires_grad_(False).to(device=device, dtype=DTYPES[precision]).eval()

    def restore(self, model: Any, folder: Path) -> None:
        """Take the addition back from an artifact.

        Raises:
            UserError: it is no adapter, or one of another rank, scale or choice of modules.
        """
        tensors = _saved_addition(model.peft_config[NAME], folder)
        if kind_of(type(model).__name__):
            _restore_head(model, tensors, folder)
        state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        for name in sorted(tensors.keys() ^ state.keys()):
            where = "only in the artifact" if name in tensors else "missing in the artifact"
            raise UserError(f"{folder}: {name} is {where}", action="use the adapter.targets of the run it comes from")
        with torch.no_grad():
            for name, tensor in state.items():
                if tensor.shape != tensors[name].shape:
                    raise UserError(
                        f"{folder}: {name} has shape {tuple(tensors[name].shape)}, the model's {tuple(tensor.shape)}",
                        action="use the model and adapter of the run it comes from",
                    )
                tensor.copy_(tensors[name])  # shares its memory with the model's parameter


def _saved_addition(config: LoraConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of an artifact by the names they have in the model.

    Raises:
        UserError: there is none, or it was trained under another rank or scale.
    """
    try:
        saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} is no adapter that can be read: {error}", action="name the artifact of a run with this adapter"
        ) from error
    for setting, option in (("r", "rank"), ("lora_alpha", "alpha"), ("use_rslora", "rslora"), ("use_dora", "dora")):
        if saved.get(setting) != getattr(config, setting):
            raise UserError(
                f"{folder}: {option} is {saved.get(setting)} there and {getattr(config, setting)} here",
                action=f"set adapter.{option} as it was",
            )
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def _head(model: Any) -> dict[str, torch.Tensor]:
    """Weights of a classifier's head by their names in the model."""
    return {f"{HEAD}.{n}": t.detach().cpu().contiguous() for n, t in getattr(model, HEAD).state_dict().items()}


def _restore_head(model: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Take a classifier's head out of the tensors of an artifact.

    Raises:
        UserError: the artifact has none, or one of another shape.
    """
    with torch.no_grad():
        for name, parameter in getattr(model, HEAD).named_parameters():
            saved = tensors.pop(f"{HEAD}.{name}", None)
            if saved is None or saved.shape != parameter.shape:
                raise UserError(f"{folder}: it holds no head that fits", action="name the artifact of a reward model")
            parameter.copy_(saved)


def _token_rows(model: Any, facts: ModelFacts) -> dict[str, list[int]]:
    """Rows that train by the name of their module, as peft asks for them; a tied head follows the embedding."""
    embedding = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    ends = (embedding,) if facts.tied else (embedding, facts.head.module)
    return {path.rpartition(".")[2]: list(facts.new_tokens) for path in ends}


def _other_targets(facts: ModelFacts) -> str:
    """What can be adapted in every model."""
    return f"set adapter.targets: attention, or name modules such as {', '.join(facts.attention_targets[:4])}"


def _adaptable(module: Any) -> bool:
    """Whether peft can add to the module: linear ones (quantised ones too), embeddings, GPT-2's Conv1D."""
    return hasattr(module, "in_features") or isinstance(module, torch.nn.Embedding | Conv1D)


def _initialise(layer: Any, generator: np.random.Generator) -> None:
    """Draw the layer's new parameters and make them float32 and trainable."""
    if NAME in layer.lora_A:
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        bound = 1 / math.sqrt(a.shape[1])
        _fill(a, generator.uniform(-bound, bound, size=tuple(a.shape)))
        _fill(b, np.zeros(tuple(b.shape)))
    else:  # of an embedding, where A is the zero one
        a, b = layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME]
        _fill(a, np.zeros(tuple(a.shape)))
        _fill(b, generator.standard_normal(size=tuple(b.shape)))
    for name, parameter in layer.named_parameters():
        if name.startswith("lora_"):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def _fill(parameter: torch.nn.Parameter, values: np.ndarray[Any, Any]) -> None:
    parameter.data = torch.from_numpy(values.astype(np.float32)).to(parameter.device)


def build(options: LoraOptions, context: Context) -> LoraAdapter:
    """Builder of the adapter `lora`."""
    new = len(context.facts.new_tokens)
    if new and not options.train_new_tokens:
        tokens = "1 new token" if new == 1 else f"{new} new tokens"
        context.note(
            f"adapter.train_new_tokens: false leaves the embeddings of {tokens} as they begin, but for what "
            "adapter.targets may add to all of them"
        )
    return LoraAdapter(options)
