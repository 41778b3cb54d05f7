"""Exporters of torchao's formats: transformers with torchao loads the folder, and so does finetooth without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Exported, ExporterBase, ExportSource, Options, UserError

from finetooth_torchao.installed import check_installed

USE = "AutoModelForCausalLM.from_pretrained('{folder}')"


class TorchaoExportOptions(Options):
    """Options of all of them."""

    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of all that is not stored in fewer bits: embeddings, norms and head."""


class MxExportOptions(TorchaoExportOptions):
    """Options of the MX formats, which torchao knows with inputs in the same format alone."""

    products: Literal["emulated", "auto"] = "emulated"
    """How torchao multiplies where the folder is loaded: with rounded numbers turned back, on any device, or with
    kernels, which want an NVIDIA GPU of compute capability 10."""


def build_int8(options: TorchaoExportOptions) -> TorchaoExporter:
    """`Int8WeightOnlyConfig`."""
    return TorchaoExporter("int8", options)


def build_fp8(options: TorchaoExportOptions) -> TorchaoExporter:
    """`Float8WeightOnlyConfig`: E4M3, a scale a row."""
    return TorchaoExporter("fp8", options)


def build_mxfp8(options: MxExportOptions) -> TorchaoExporter:
    """`MXDynamicActivationMXWeightConfig` of E4M3."""
    return TorchaoExporter("mxfp8", options)


def build_mxfp4(options: MxExportOptions) -> TorchaoExporter:
    """`MXDynamicActivationMXWeightConfig` of E2M1."""
    return TorchaoExporter("mxfp4", options)


def build_nvfp4(options: TorchaoExportOptions) -> TorchaoExporter:
    """`NVFP4WeightOnlyConfig`."""
    return TorchaoExporter("nvfp4", options)


class TorchaoExporter(ExporterBase):
    """Writes the whole model as `save_pretrained` does over torchao's tensors.

    Args:
        form: see `library_config`.
    """

    def __init__(self, form: str, options: TorchaoExportOptions) -> None:
        self._form, self._options = form, options

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write it, load it as transformers does, and compare the weights with those that were written.

        Raises:
            UserError: torchao is not installed, transformers has no class for the model, or it loads other weights than
                were written.
        """
        check_installed()
        from finetooth_torchshared.packing import without_memory

        from finetooth_torchao.modules import quiet

        plain = folder / "plain"
        source.weights(self._options.precision, folder=plain)
        if without_memory(plain) is None:
            raise UserError(
                f"{source.run}: a model of this kind cannot be stored by torchao",
                action="export it with --to safetensors",
            )
        with quiet():
            stored = _written(plain, folder, library_config(self._form, self._options))
        shutil.rmtree(plain)
        return Exported(
            use=USE, checks=(f"{stored} linear modules stored by torchao, and loaded as they were written",), model="."
        )


def library_config(form: str, options: TorchaoExportOptions) -> Any:
    """torchao's config: `int8`, `fp8`, `mxfp8`, `mxfp4`, `nvfp4`."""
    import torch
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig, NVFP4WeightOnlyConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    if isinstance(options, MxExportOptions):
        element = {"mxfp8": torch.float8_e4m3fn, "mxfp4": torch.float4_e2m1fn_x2}[form]
        products = KernelPreference[options.products.upper()]
        return MXDynamicActivationMXWeightConfig(
            kernel_preference=products, activation_dtype=element, weight_dtype=element
        )
    kinds = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig, "nvfp4": NVFP4WeightOnlyConfig}
    return kinds[form]()


def _written(plain: Path, folder: Path, config: Any) -> int:
    """How many modules are stored in the folder, which gets what is not a weight too."""
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(plain, dtype="auto", quantization_config=TorchAoConfig(config))
    model.save_pretrained(folder)
    for file in plain.iterdir():
        if not (folder / file.name).exists() and file.suffix != ".safetensors":
            shutil.move(file, folder)
    kept = {path: module.weight for path, module in model.named_modules() if _is_stored(module)}
    del model
    for path, module in load(folder, dtype="auto").named_modules():
        if path in kept and not torch.equal(module.weight.dequantize(), kept[path].dequantize()):
            raise UserError(f"{folder}: {path} loads as other numbers than were written", action="report it")
    return len(kept)


def _is_stored(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor
