"""Whole models: transformers' layout, and the same with the mark by which mlx-lm knows its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Exported, ExporterBase, ExportSource, Options, UserError
from finetooth_toolbox.messages.shipped import check, stops_of
from jinja2 import TemplateError
from pydantic import Field


class WholeOptions(Options):
    """Options of `safetensors` and `mlx`."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(default="bf16")
    """Of the numbers that are written."""


def build_safetensors(options: WholeOptions) -> WholeExporter:
    """For whatever reads transformers' layout."""
    return WholeExporter(options.precision)


def build_mlx(options: WholeOptions) -> WholeExporter:
    """For mlx-lm."""
    return WholeExporter(options.precision, mark="mlx")


class WholeExporter(ExporterBase):
    """Writes config, safetensors files and tokenizer.

    Args:
        precision: of the numbers.
        mark: `format` in the metadata of the files: mlx-lm takes tensors of its own format as they are.
    """

    def __init__(self, precision: str, mark: str = "pt") -> None:
        self._precision, self._mark = precision, mark

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write it, and read every tensor back.

        Raises:
            UserError: a tensor has another type, or is not finite.
        """
        source.weights(self._precision, folder=folder)
        files = sorted(folder.glob("*.safetensors"))
        count = sum(self._finish(file) for file in files)
        of = "a file" if len(files) == 1 else f"{len(files)} files"
        use = "python -m mlx_lm generate --model {folder} --prompt Hello" if self._mark == "mlx" else "ft chat {folder}"
        checks = (f"{count} tensors in {of} read back, finite and in {self._precision}",)
        spoken = _spoken(source, folder)
        return Exported(use=use, checks=(*checks, *([spoken] if spoken else [])), model=".")

    def _finish(self, file: Path) -> int:
        """Look at the tensors of a file, and mark it; how many there are."""
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self._precision]
        tensors = {}
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            for name in names:
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point() and tensor.dtype != wanted and tensor.ndim > 1:
                    raise UserError(f"{file.name}: {name} is {tensor.dtype}, not {wanted}", action="report it")
                if not torch.isfinite(tensor).all():
                    raise UserError(
                        f"{file.name}: {name} has numbers that are not finite in {self._precision}",
                        action="choose precision=fp32 or bf16",
                    )
                if self._mark != "pt":
                    tensors[name] = tensor
        if self._mark != "pt":
            mode = file.stat().st_mode
            save_file(tensors, file, metadata={"format": self._mark})
            file.chmod(mode)
        return len(names)


def _spoken(source: ExportSource, folder: Path) -> str:
    """Compare how transformers opens and ends answers with the run.

    Raises:
        UserError: it does so in another way.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), mistral_format=False)

    def prompt(messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError):
            return None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return check(source.artifact, source.context.renderer, prompt, stops_of(folder))
