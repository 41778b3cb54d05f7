"""Exporters, which write a trained model for another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetooth_hooks.context import Context


class ExportSource(Protocol):
    """What a run trained, for an exporter. Nothing is read before it is asked for.

    Attributes:
        run: its folder.
        artifact: the folder of what it trained, every file checked.
        adapter: whether that is an adapter; else it is a model in transformers' layout.
        context: of a recipe whose model is the run: what it trained is `context.loader`, `context.tokenizer`,
            `context.renderer` and `context.facts`.
        card: the model card, Markdown with a YAML head; the folder that is exported gets it as README.md.
        scratch: an empty folder on the disk of the export, gone afterwards.
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
        """A folder in transformers' layout with the whole model, an adapter folded in: config and safetensors files,
        the tokenizer in the same folder.

        Args:
            precision: of the numbers, `fp32`, `bf16` or `fp16`.
            folder: where to write it; None: the artifact itself if that is what is asked for, else below `scratch`.

        Raises:
            UserError: the adapter cannot be folded into its base, or was made for another one.
            EngineError: no room.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        use: one command line that uses it, `{folder}` standing for the folder; empty: none is known.
        checks: what was compared with the run, one clause each: `272 tensors read back`.
        model: what of the folder can stand under `model:` in a recipe: a file in it, or `.` for the folder itself. It
            is measured with the run's own evaluator. Empty: nothing, as of an adapter.
    """

    use: str = ""
    checks: tuple[str, ...] = ()
    model: str = ""


class Exporter(Protocol):
    """Writes what a run trained for another tool; `ft export RUN --to NAME` picks it, no recipe does. Its builder gets
    the `CommandContext` as its context. An exporter derives from `finetooth_hooks.ExporterBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for exporters there are none yet."""
        ...

    def check(self, source: ExportSource) -> None:
        """Check whether it can be written, before any weight is read.

        Raises:
            UserError: this layout cannot hold the model; names why.
        """
        ...

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write it into an empty folder, read it back and compare.

        Raises:
            UserError: what was read back is not what was written.
        """
        ...
