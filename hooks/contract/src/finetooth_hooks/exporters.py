"""Exporters, which write a trained model for another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetooth_hooks.context import Context


class ExportSource(Protocol):
    """A run's trained model, for an exporter. Weights are read only on request.

    Attributes:
        run: its folder.
        artifact: the folder of the trained model or adapter, with every file checked.
        adapter: the artifact is an adapter; otherwise a model in transformers' layout.
        context: of a recipe whose model is the run: `context.loader`, `context.tokenizer`, `context.renderer` and
            `context.facts` are those of the trained model.
        card: the model card, Markdown with a YAML head; README.md of the exported folder.
        scratch: an empty folder on the disk of the export, deleted afterwards.
    """

    @property
    def run(self) -> Path: ...
    @property
    def artifact(self) -> Path: ...
    @property
    def adapter(self) -> bool: ...
    @property
    def context(self) -> Context: ...
    @property
    def card(self) -> str: ...
    @property
    def scratch(self) -> Path: ...

    def weights(self, precision: str, *, folder: Path | None = None) -> Path:
        """A folder in transformers' layout with the whole model, its adapter merged: config, safetensors files and
        tokenizer.

        Args:
            precision: of the numbers, `fp32`, `bf16` or `fp16`.
            folder: the folder to write; None: the artifact itself if it is such a folder, else a folder below
                `scratch`.

        Raises:
            UserError: the adapter cannot be merged into its base, or was made for another base.
            EngineError: the disk lacks space.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        use: one command line that uses the export, with `{folder}` for its folder; empty: unknown.
        checks: the comparisons with the run, one clause each: `272 tensors read back`.
        model: the part of the folder that a recipe can name as `model:`: a file in it, or `.` for the folder itself.
            The run's own evaluator measures it. Empty: none, as for an adapter.
    """

    use: str = ""
    checks: tuple[str, ...] = ()
    model: str = ""


class Exporter(Protocol):
    """Writes a run's trained model for another tool. `ft export RUN --to NAME` picks it, and no recipe can. Its builder
    gets the `CommandContext` as its context. An exporter derives from `finetooth_hooks.ExporterBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for exporters there are none yet."""
        ...

    def check(self, source: ExportSource) -> None:
        """Check that the model can be written, before any weight is read.

        Raises:
            UserError: this layout cannot hold the model; gives the reason.
        """
        ...

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write the model into an empty folder, read it back and compare.

        Raises:
            UserError: the folder, read back, differs from the model.
        """
        ...
