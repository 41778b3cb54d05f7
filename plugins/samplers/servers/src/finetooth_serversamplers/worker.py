"""Runs in vLLM's workers: reads whole weights from a folder, and remembers their name.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls finetooth_serversamplers.worker.Weights

vLLM mixes this class into its workers (`--worker-extension-cls`) and calls its methods over `POST /collective_rpc`,
with texts as arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from finetooth_serversamplers.checksums import checksum


class Weights:
    """Loads weights from a trainer.

    Attributes:
        model_runner: vLLM's. Its `reload_weights` reads a folder, and converts weights to the form of the layers; older
            versions lack it, and `model.load_weights` takes pairs of names and tensors.
    """

    model_runner: Any
    _finetooth: str = ""

    def finetooth_load(self, folder: str, name: str) -> str:
        """Load the weights of a folder.

        Args:
            name: `ft-EPOCH-VERSION-CHECKSUM`.

        Returns:
            The name; empty if the files do not match its checksum, and then no weights are loaded.
        """
        if not name.endswith(f"-{checksum(Path(folder))[:12]}"):
            return ""
        self._finetooth = ""  # no name while old and new weights are mixed
        reload = getattr(self.model_runner, "reload_weights", None)
        if reload is not None and "weights_path" in signature(reload).parameters:
            reload(weights_path=folder)
        else:
            self.model_runner.model.load_weights(_tensors(Path(folder)))
        _pack_shared(self.model_runner.model)
        self._finetooth = name
        return name

    def finetooth_weights(self) -> str:
        """The name of the weights; empty for the server's initial weights."""
        return self._finetooth


def _pack_shared(model: Any) -> None:
    """Pack weights that several layers share, such as those of a tied head, for each of these layers.

    On CPUs every layer computes with its own packed copy, and vLLM (0.32.0) renews it only for the layer with the name
    in the file: a tied head kept the old weights.
    """
    sharing: dict[int, list[Any]] = {}
    for layer in model.modules():
        weight = layer.__dict__.get("_parameters", {}).get("weight")
        if weight is not None and weight.numel():
            sharing.setdefault(weight.data_ptr(), []).append(layer)
    for layers in sharing.values():
        for layer in layers if len(layers) > 1 else ():
            if hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is not a mapping)
                yield name, file.get_tensor(name)
