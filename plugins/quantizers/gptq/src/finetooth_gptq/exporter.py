"""The exporter `gptq`: a model whose layers are rounded by GPTQ and packed as AutoGPTQ and GPTQModel pack them, which
vLLM, transformers with gptqmodel, and finetooth load."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetooth_hooks import CommandContext, Exported, ExporterBase, ExportSource, Options, UserError
from pydantic import Field

if TYPE_CHECKING:
    from finetooth_torchshared.grouped_linear import Grouped
    from torch import Tensor

INSTEAD = "export it with --to safetensors"


class GptqExportOptions(Options):
    """Options of the exporter `gptq`."""

    bits: Literal[4, 8] = 4
    """Bits per weight."""
    group: Literal[32, 64, 128] = 128
    """Number of consecutive weights of an output that share a scale."""
    rows: int = Field(default=128, ge=1)
    """How many rows it is calibrated with: the first ones."""
    calibrate_on: str = ""
    """A file of rows to calibrate with: texts, conversations, or prompts with completions. Left out, `data.train` of
    the run."""
    ordered: bool = True
    """Whether to round the inputs that matter most first."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to its diagonal before it is inverted. Raise it if that
    fails."""
    precision: Literal["fp16", "bf16"] = "fp16"
    """Of scales, and of all that is not rounded: embeddings, norms and head."""


def build(options: GptqExportOptions, context: CommandContext) -> GptqExporter:
    """GPTQ (Frantar et al., 2022, arXiv:2210.17323), symmetric: what vLLM's fast kernels take."""
    return GptqExporter(options, context)


class GptqExporter(ExporterBase):
    """See `GptqExportOptions`. The whole model is in memory, in fp32.

    Attributes:
        method: as recipes and configs call it.
    """

    method = "gptq"

    def __init__(self, options: Any, commands: CommandContext) -> None:
        self._options, self._commands = options, commands

    @property
    def bits(self) -> int:
        """Of a weight."""
        return int(self._options.bits)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Round the linear modules of the layers, pack them, and read them back.

        Raises:
            UserError: there is nothing to calibrate with, a module cannot be packed, or what was read back is not what
                was rounded.
        """
        from finetooth_torchshared.packed_files import repack

        rows = self._rows(source)
        source.weights("fp32", folder=folder)
        rounded, changed = self._rounded(source, folder, rows)
        left = {*rounded, *changed}
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[self._options.precision]

        def pack(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
            path = name.removesuffix(".weight")
            if name.endswith(".weight") and path in rounded:
                left.remove(path)
                return {f"{path}.{part}": of for part, of in self.packed(rounded[path], dtype).items()}
            left.discard(name)
            return {name: in_dtype(changed.get(name, tensor), dtype, name)}

        repack(folder, pack, {"dtype": dtype, "quantization_config": self.said()})
        if left:
            raise UserError(f"{source.run}: {min(left)} has another name in files", action=INSTEAD)
        (folder / "quantize_config.json").write_text(json.dumps(self.said(), indent=2) + "\n", encoding="utf-8")
        _check(folder, rounded)
        check = f"{len(rounded)} linear modules of {self.bits} bits read back as they were rounded"
        return Exported(use="vllm serve {folder}", checks=(check,), model=".")

    def _rows(self, source: ExportSource) -> list[list[int]]:
        from finetooth_rendering.calibration import calibration_rows

        recipe = dict(self._commands.load(source.run / "recipe.yaml"))
        if file := self._options.calibrate_on:
            data = {name: of for name, of in recipe.get("data", {}).items() if name == "renderer"}
            recipe["data"] = {**data, "train": str(Path(file).absolute())}
        context = self._commands.context(recipe)
        instead = "set calibrate_on=FILE, rows of texts or conversations"
        return calibration_rows(context, self._options.rows, f"--to {self.method}", self.method, instead=instead)

    def _rounded(
        self, source: ExportSource, folder: Path, rows: list[list[int]]
    ) -> tuple[dict[str, Grouped], dict[str, Tensor]]:
        """What stands for the weight of each linear module of the layers, by its path; and other tensors of the model
        that are not what they were, by name."""
        from finetooth_torchshared.grouped_linear import GroupedLinear

        from finetooth_gptq.calibration import calibrate
        from finetooth_gptq.model import Rounding

        options, rounded = self._options, dict[str, "Grouped"]()
        rounding = Rounding(options.bits, options.group, options.damping, options.ordered, symmetric=True)

        def store(path: str, module: Any, hessian: Tensor) -> GroupedLinear:
            rounded[path] = rounding.rounded(path, module.weight, hessian)
            return GroupedLinear(rounded[path], module.bias)

        layers = source.context.facts.layer_path
        calibrate(self.loaded(folder), layers, rows, self.takes(source), store, self.refusing(source))
        return rounded, {}

    def loaded(self, folder: Path) -> Any:
        """The written model, in fp32."""
        loader = self._commands.context({"model": str(folder)}).loader
        return loader.load(str(folder), framework="torch", precision="fp32", device="cpu")

    def takes(self, source: ExportSource) -> Callable[[str, tuple[int, int]], bool]:
        """For `calibrate`: every linear module, or a refusal of one that cannot be packed."""
        group, words = self._options.group, 32 // self.bits

        def takes(path: str, shape: tuple[int, int]) -> bool:
            if shape[1] % group or shape[0] % words:
                raise UserError(
                    f"{source.run}: {path} of {shape[0]} outputs and {shape[1]} inputs cannot be packed in groups of "
                    f"{group} inputs and words of {words} outputs",
                    action=f"set a smaller group, or {INSTEAD}",
                )
            return True

        return takes

    def refusing(self, source: ExportSource) -> Callable[..., Any]:
        """For `calibrate`: no experts that are held as one weight."""

        def refuse(path: str, weight: Tensor, hessians: Mapping[int, Tensor]) -> Any:
            raise UserError(f"{source.run}: {path} holds several experts, which are not packed", action=INSTEAD)

        return refuse

    def said(self) -> dict[str, Any]:
        """What the config says of it: the words of AutoGPTQ. Groups are inputs side by side in every case, so that a
        reader has nothing to put in order (`desc_act`)."""
        options = self._options
        return {
            "quant_method": "gptq", "checkpoint_format": "gptq", "bits": options.bits, "group_size": options.group,
            "sym": True, "desc_act": False, "static_groups": True, "true_sequential": False,
            "damp_percent": options.damping, "lm_head": False,
        }  # fmt: skip

    def packed(self, weight: Grouped, dtype: str) -> dict[str, Tensor]:
        """The tensors that stand for a weight: codes along the inputs, zeros less 1 along the outputs, scales, and the
        group of each input.

        Args:
            dtype: of the scales, as torch calls it.
        """
        import torch
        from finetooth_torchshared.packed_files import words

        assert weight.zeros is not None
        inputs = torch.arange(weight.codes.shape[1], dtype=torch.int32)
        return {
            "qweight": words(weight.codes.T, weight.bits, 0),
            "qzeros": words(weight.zeros.T - 1, weight.bits, 1),
            "scales": in_dtype(weight.scales.T, dtype, "scales").contiguous(),
            "g_idx": inputs // weight.group,
        }


def in_dtype(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """Returns the tensor in a precision that can hold its numbers.

    Raises:
        UserError: a number is beyond the precision's.
    """
    import torch

    made = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
    if not torch.isfinite(made).all():
        raise UserError(f"{name} has numbers that are not finite in {dtype}", action="set precision=bf16")
    return made


def _check(folder: Path, rounded: Mapping[str, Grouped]) -> None:
    """
    Raises:
        UserError: a module that is read back is not what was rounded.
    """
    import torch
    from finetooth_torchshared.grouped_linear import GroupedLinear
    from finetooth_torchshared.packed_files import modules_of

    for path, read in modules_of(folder, rounded):
        wanted = GroupedLinear(rounded[path]).dequantised(torch.float32)
        if not torch.allclose(read.dequantised(torch.float32), wanted, rtol=2.0**-9, atol=1e-7):
            raise UserError(f"{folder}: {path} reads back as other numbers than were written", action="report it")
