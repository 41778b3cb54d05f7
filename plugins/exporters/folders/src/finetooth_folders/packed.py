"""Linear weights in few bits, rounded one by one, in the layouts of compressed-tensors, HQQ and Quanto: see
`finetooth_torchshared.packing`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from finetooth_hooks import Exported, ExporterBase, ExportSource, Options, UserError

QUANTO = "optimum.quanto.QuantizedModelForCausalLM.from_pretrained('{folder}')"
USES = {"quanto_int8": QUANTO, "quanto_int4": QUANTO}


class PackedOptions(Options):
    """Options of all of them."""

    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of scales, and of all that is not packed: embeddings, norms and head."""


def build_int8(options: PackedOptions) -> PackedExporter:
    """Groups of 64 weights."""
    return PackedExporter("int8", options.precision)


def build_int4(options: PackedOptions) -> PackedExporter:
    """Groups of 32 weights."""
    return PackedExporter("int4", options.precision)


def build_mxfp4(options: PackedOptions) -> PackedExporter:
    """Blocks of 32 weights, E2M1 under a power of two."""
    return PackedExporter("mxfp4", options.precision)


def build_hqq(options: PackedOptions) -> PackedExporter:
    """Groups of 64 weights, whose zero lets a few weights be far off."""
    return PackedExporter("hqq", options.precision)


def build_quanto_int8(options: PackedOptions) -> PackedExporter:
    """All weights of an output under a scale."""
    return PackedExporter("quanto_int8", options.precision)


def build_quanto_int4(options: PackedOptions) -> PackedExporter:
    """Groups of 128 weights, or of fewer where those do not divide the inputs."""
    return PackedExporter("quanto_int4", options.precision)


class PackedExporter(ExporterBase):
    """Writes config, packed safetensors files and tokenizer.

    Args:
        form: a key of `finetooth_torchshared.packing.FORMATS`.
        precision: of the numbers that stay.
    """

    def __init__(self, form: str, precision: str) -> None:
        self._form, self._precision = form, precision

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write it, and read the packed modules back.

        Raises:
            UserError: transformers has no class for the model, or a weight cannot be packed.
        """
        from finetooth_torchshared.packing import FORMATS, pack_folder, without_memory

        source.weights(self._precision, folder=folder)
        model = without_memory(folder)
        if model is None:
            raise UserError(
                f"{source.run}: a model of this kind cannot be packed", action="export it with --to safetensors"
            )
        packed = pack_folder(model, folder, FORMATS[self._form])
        return Exported(
            use=USES.get(self._form, "ft chat {folder}, or vllm serve {folder}"),
            checks=(f"{packed} linear modules packed as {self._form}",),
            model=".",
        )
