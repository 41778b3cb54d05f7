"""The half of an adapter that reads an artifact in peft's layout. Nothing here imports peft before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.protocols import Quantizer


class FoldableAdapter(AdapterBase):
    """Base of adapters whose artifact peft folds into the base model."""

    def fold(
        self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> Any:  # fmt: skip
        """See `protocols.Adapter`: the base with the artifact folded in by peft's own merge.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        from finetooth_peftfiles.folding import fold

        return fold(model, folder, precision=precision, device=device, pad_id=pad_id, quantizer=quantizer)

    def folded_config(self, folder: Path) -> dict[str, Any]:
        """See `protocols.Adapter`: peft's `adapter_config.json` shows whether the adapter has a head."""
        from finetooth_modelfiles.classifiers import folded_config

        return folded_config(folder)
