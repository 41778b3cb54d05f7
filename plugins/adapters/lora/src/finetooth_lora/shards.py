"""Merging a base that lies in a folder, tensor by tensor: what is held is the file that is read from, as far as it was
read, and a tensor of what is written, whatever the size of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import ModelInfo, Quantizer
from finetooth_toolbox.peft import artifact
from finetooth_toolbox.torch.kept_in_fp32 import kept_in_fp32
from finetooth_toolbox.torch.quantised import PRECISIONS, DequantisingLinear, stored_linear, stores_apart
from finetooth_toolbox.torch.whole_weights import quiet_library
from safetensors import safe_open
from torch import Tensor, nn

from finetooth_lora.artifact import A, B

MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
"""How names of DoRA's lengths end."""
OTHERS = (
    "modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern", "lora_bias", "target_parameters",
    "layer_replication", "fan_in_fan_out",
)  # fmt: skip
"""Settings of peft's that say of more than matrices of linear modules."""
INDEX = "model.safetensors.index.json"


FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SAFETENSORS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""Names of types in a safetensors file."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Change:
    """What an adapter makes of a weight W: W + scale B A, of whose rows DoRA says the length.

    Attributes:
        a, b: (rank, inputs) and (outputs, rank).
        lengths: (outputs,), or None.
    """

    a: Tensor
    b: Tensor
    scale: float
    lengths: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """W as it is merged, in float32.

        Args:
            weight: (outputs, inputs), float32.
        """
        summed: Tensor = torch.addmm(weight, self.b.float(), self.a.float(), alpha=self.scale)
        if self.lengths is None:
            return summed
        norms: Tensor = torch.linalg.vector_norm(summed, dim=1)
        return summed * (self.lengths.float() / norms).unsqueeze(1)


@dataclass(frozen=True)
class Sharded:
    """A base in a folder, and what an adapter changes in it.

    Attributes:
        model: the base's, without memory.
        files: of the base, by tensor.
        changes: by the name of a weight.
        computed: what the base was computed with, `bf16`; None: what it is merged in.
        quantizer: that stored it; None: none did.
    """

    model: Any
    files: Mapping[str, Path]
    changes: Mapping[str, Change]
    computed: str | None
    quantizer: Quantizer | None

    def write(self, folder: Path, precision: str) -> None:
        """Write config and weights in transformers' layout, a file for each of the base's.

        Raises:
            UserError: a sum is not finite.
            OSError, SafetensorError: a file cannot be read or written.
        """
        dtype = PRECISIONS[precision]
        tied = set(self.model.all_tied_weights_keys)
        stays = kept_in_fp32(self.model, dtype)
        files = sorted(set(self.files.values()))
        places: dict[str, str] = {}
        total = 0
        for file in files:
            names = sorted(name for name, place in self.files.items() if place == file and name not in tied)
            target = file.name if len(files) > 1 else "model.safetensors"
            with safe_open(file, framework="pt") as opened:
                said = {}
                for name in names:
                    part = opened.get_slice(name)
                    kind = part.get_dtype()
                    if kind in FLOATS:
                        kind = "F32" if name in stays else SAFETENSORS[precision]
                    said[name] = (kind, tuple(part.get_shape()))
                total += write_tensors(folder / target, said, partial(self._tensor, opened, stays, dtype))
            places |= dict.fromkeys(names, target)
        if len(files) > 1:
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        config = self.model.config
        config.dtype, config.architectures = dtype, [type(self.model).__name__]
        with quiet_library():
            config.save_pretrained(str(folder))
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(str(folder))

    def _tensor(self, opened: Any, stays: frozenset[str], dtype: torch.dtype, name: str) -> Tensor:
        """A tensor of the merged model."""
        read: Tensor = opened.get_tensor(name)
        if not read.is_floating_point():
            return read
        if self.computed is not None:
            computed = PRECISIONS[self.computed]
            read = read.to(torch.float32 if name in kept_in_fp32(self.model, computed) else computed)
        return self._merged(name, read).to(torch.float32 if name in stays else dtype)

    def _merged(self, name: str, read: Tensor) -> Tensor:
        path = name.removesuffix(".weight")
        if self.quantizer is not None and name.endswith(".weight") and self._stores(path, self.quantizer):
            plain = nn.Linear(read.shape[1], read.shape[0], bias=False, device="meta")
            plain.weight = nn.Parameter(read, requires_grad=False)
            made: Any = stored_linear(path, plain, self.quantizer, "cpu")
            read = made.dequantised(torch.float32)
        change = self.changes.get(name)
        if change is None:
            return read
        found = change.of(read.float())
        if not found.isfinite().all():
            raise UserError(f"merging {name} gives numbers that are not finite", action="train again with a lower rate")
        return found

    def _stores(self, path: str, quantizer: Quantizer) -> bool:
        module = self.model.get_submodule(path)
        linear = isinstance(module, nn.Linear) and module is not self.model.get_output_embeddings()
        return linear and quantizer.takes(path, (module.out_features, module.in_features))


def write_tensors(path: Path, said: Mapping[str, tuple[str, tuple[int, ...]]], tensor: Callable[[str], Tensor]) -> int:
    """Write a safetensors file, one tensor in memory: the library's own writer takes all of them, and copies each.

    Layout: https://github.com/huggingface/safetensors#format, version 0.8 and before: the header's length in 8 bytes,
    the header, filled with blanks to whole 8 bytes, and the tensors.

    Args:
        said: type and shape of each.
        tensor: one of them, of that type and shape.

    Returns:
        Bytes of all tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # tensors of large elements first, so that each lies at a multiple of its element's size
    ordered = sorted(said, key=lambda name: (-BYTES[said[name][0]], name))
    end = 0
    for name in ordered:
        kind, shape = said[name]
        begin, end = end, end + math.prod(shape) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)
        for name in ordered:
            made = tensor(name).contiguous()
            file.write(made.reshape(-1).view(torch.uint8).numpy().data)
            del made
    return end


def sharded(info: ModelInfo, adapter: Path, computed: str | None, quantizer: Quantizer | None) -> Sharded | None:
    """A base and an adapter that can be merged tensor by tensor; None where they must be loaded whole: the base is no
    folder, its files name tensors otherwise than its model does or hold packed bits, or the adapter trains more than
    matrices beside linear modules.

    Args:
        computed: what the base was computed with in the run.

    Raises:
        UserError: the adapter cannot be read, or is of another model.
    """
    if not info.files or info.stored is not None or not Path(info.published).is_dir():
        return None
    if quantizer is not None and not (stores_apart(quantizer) and _reads_back(quantizer)):
        return None
    changes = changes_of(adapter)
    model = without_memory(Path(info.published))
    if changes is None or model is None:
        return None
    files: dict[str, Path] = {}
    for file in info.files:
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(list(opened.keys()), file)
    wanted = model.state_dict()
    tied = set(model.all_tied_weights_keys)
    if wanted.keys() - tied != files.keys() - tied:
        return None
    if changes.keys() & (tied | set(model.all_tied_weights_keys.values())):
        return None  # a sum would reach both ends
    for name, change in changes.items():
        shape = (change.b.shape[0], change.a.shape[1])
        if name not in wanted or tuple(wanted[name].shape) != shape:
            raise UserError(
                f"{adapter} does not fit its base model: {name} is {shape[0]} x {shape[1]} there",
                action="merge it into the model it was trained on",
            )
    return Sharded(model, files, changes, computed, quantizer)


def changes_of(adapter: Path) -> dict[str, Change] | None:
    """What a LoRA or DoRA in peft's layout makes of weights, by their names; None if it trains anything else.

    Raises:
        UserError: it is none that can be read.
    """
    saved, tensors = artifact.read(adapter)
    plain = saved.get("peft_type") == "LORA" and saved.get("bias", "none") == "none"
    if not plain or any(saved.get(name) for name in OTHERS) or saved.get("task_type") not in (None, "CAUSAL_LM"):
        return None
    rank = saved["r"]
    scale = saved["lora_alpha"] / (math.sqrt(rank) if saved.get("use_rslora") else rank)
    found = {}
    for name in [name for name in tensors if name.endswith(A)]:
        path = name.removesuffix(A)
        lengths = next((tensors.pop(path + end) for end in MAGNITUDES if path + end in tensors), None)
        if path + B not in tensors or (lengths is None) == bool(saved.get("use_dora")):
            return None
        found[f"{path}.weight"] = Change(tensors.pop(name), tensors.pop(path + B), scale, lengths)
    return None if tensors else found


def _reads_back(quantizer: Quantizer) -> bool:
    """Whether what it stores can be read as numbers."""
    probe = nn.Linear(256, 8, bias=False)
    return isinstance(quantizer.linear(probe, device="cpu"), DequantisingLinear)


def without_memory(folder: Path) -> Any:
    """The model of a folder on torch's device `meta`; None where only its loader knows what it is."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder))
    named = (getattr(config, "architectures", None) or [""])[0]
    made = getattr(transformers, named, None)
    if made is None or not named.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    with torch.device("meta"):
        model = made(config)
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder))
    return model
