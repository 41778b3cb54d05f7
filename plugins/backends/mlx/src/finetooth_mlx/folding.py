"""Writes a model of MLX as a folder in transformers' layout, and merges an adapter into it.

The folder holds plain numbers: quantised again, the sum would lose what was tuned.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from finetooth_hooks import PlanError, ScalarHead, UserError
from finetooth_hooks.protocols import Quantizer
from finetooth_modelfiles.lora_settings import scale_of
from mlx.utils import tree_map, tree_unflatten

from finetooth_mlx import heads
from finetooth_mlx.adapters import BY_TORCH, HEAD, check_plain, read_adapter, write_tensors
from finetooth_mlx.arrays import DTYPES, named
from finetooth_mlx.configs import LLAMA_KIND
from finetooth_mlx.low_rank import head_of, in_few_bits, lengthened, plain_weight


def plain(model: Any) -> Any:
    """The model with each quantised module replaced by a plain one with the dequantised numbers, in fp32."""
    made = []
    for path, module in model.named_modules():
        if in_few_bits(module):
            embeds = isinstance(module, nn.QuantizedEmbedding)
            new = nn.Embedding(1, 1) if embeds else nn.Linear(1, 1, bias="bias" in module)
            new.weight = plain_weight(module)
            if "bias" in module:
                new.bias = module.bias
            made.append((path, new))
    model.update_modules(tree_unflatten(made))
    return model.eval()


def fold(model: Any, folder: Path, precision: str) -> Any:
    """A base merged with the adapter of an artifact, as plain numbers.

    Raises:
        UserError: the artifact was made for another model or has weights other than matrices of linear modules, or the
            sum is not finite.
    """
    saved, tensors = read_adapter(folder)
    check_plain(saved, folder)
    scale = scale_of(saved)
    model.brought_head = {name: tensors.pop(name) for name in [name for name in tensors if heads.is_head(name)]}
    modules = dict(plain(model).named_modules())
    if f"{HEAD}.lora_A.weight" in tensors and HEAD not in modules:  # untied from here on
        embedding = next(module for path, module in modules.items() if path.endswith("embed_tokens"))
        model[HEAD] = modules[HEAD] = head_of(embedding)
    for a in [name for name in tensors if name.endswith(".lora_A.weight")]:
        path = a.removesuffix(".lora_A.weight")
        low, high = tensors.pop(a).astype(mx.float32), tensors.pop(f"{path}.lora_B.weight").astype(mx.float32)
        module = modules.get(path)
        if module is None or module.weight.shape != (len(high), low.shape[1]):
            raise UserError(
                f"{folder} does not fit its base model: {path} is {len(high)} x {low.shape[1]} there",
                action="merge it into the model it was trained on",
            )
        weight, lengths = module.weight.astype(mx.float32), tensors.pop(f"{path}.lora_magnitude_vector", None)
        summed = weight + scale * (high @ low)
        module.weight = summed if lengths is None else lengthened(lengths, weight, scale * high, low)[:, None] * summed
        if not mx.isfinite(module.weight).all():
            raise UserError(f"merging {path} gives numbers that are not finite", action="train again with a lower rate")
    if tensors:
        raise UserError(f"{folder}: MLX cannot fold {min(tensors)} into its base", action=BY_TORCH)
    return cast(model, precision)


def stored(model: Any, quantizer: Quantizer | None) -> Any:
    """The model with the linear modules of its layers quantised, if there is a quantizer."""
    if quantizer is not None:
        linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        taken = [(path, module) for path, module in linear if quantizer.takes(path, module.weight.shape)]
        model.update_modules(tree_unflatten([(path, quantizer.linear(module, device="")) for path, module in taken]))
    return model.eval()


def cast(model: Any, precision: str) -> Any:
    """The model in a precision."""
    floats = (mx.float32, mx.bfloat16, mx.float16)
    model.update(tree_map(lambda a: a.astype(DTYPES[precision]) if a.dtype in floats else a, model.parameters()))
    return model


def write_model(model: Any, folder: Path) -> None:
    """Write config and safetensors.

    Raises:
        PlanError: mlx-lm's class joins or renames what the model's files hold.
    """
    check_names(model)
    folder.mkdir(parents=True, exist_ok=True)
    if (model.source.folder / "generation_config.json").is_file():
        shutil.copyfile(model.source.folder / "generation_config.json", folder / "generation_config.json")
    arrays = {name: array for name, array in named(model.parameters()).items() if not heads.is_head(name)}
    if model.brought_head and getattr(model, "asked_head", None) is None:
        weight = model.brought_head["score.weight"]
        two = len(weight) == 2
        head = ScalarHead(bias=two, exported_as="token" if two else "sequence")
        heads.add_head(model, head, weight.shape[1], np.random.default_rng(0))
    if of_head := heads.classifier_tensors(model):  # a classifier has no language-model head
        arrays = {name: array for name, array in arrays.items() if not name.startswith("lm_head.")} | of_head
    kinds = {array.dtype for array in arrays.values()}
    word = {DTYPES["fp32"]: "float32", DTYPES["bf16"]: "bfloat16", DTYPES["fp16"]: "float16"}[min(kinds, key=str)]
    written = model.source.folder / "config.json"
    config = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else model.source.config
    left_out = ("torch_dtype", "dtype", "quantization", "quantization_config")
    config = {name: value for name, value in config.items() if name not in left_out}
    if f"{HEAD}.weight" in arrays:
        config["tie_word_embeddings"] = False
    config |= {"dtype": word, **heads.classifier_settings(model, config, getattr(model, "pad_id", None))}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(folder / "model.safetensors", arrays)
    heads.write_critic(model, folder)


def check_names(model: Any) -> None:
    """Checks that the trained model has the tensor names of transformers' layout.

    Raises:
        PlanError: mlx-lm's class joins or renames the tensors of the model's files, so no folder in their layout can be
            written.
    """
    mine = {name for name in named(model.parameters()) if not heads.is_head(name)}
    theirs = {name for name in model.source.names if not name.endswith(("rotary_emb.inv_freq", ".scales", ".biases"))}
    theirs = {name for name in theirs if not heads.is_head(name)}
    odd = sorted((mine ^ theirs) - {f"{HEAD}.weight"})  # optional in a model's files
    if "quantization" in model.source.config and model.source.config["model_type"] not in LLAMA_KIND:
        odd = [*odd, "a folder of mlx-lm's own names"]
    if odd:
        raise PlanError(
            f"adapter: this model cannot be written in transformers' layout from MLX: {odd[0]} is only on one side",
            action="choose adapter: lora, or set backend: torch",
        )
