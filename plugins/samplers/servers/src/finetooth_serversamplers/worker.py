"""Runs in vLLM's own workers: whole weights are read from a folder, and their name is kept with them.

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
    """Weights that a trainer puts in.

    Attributes:
        model_runner: vLLM's. Its `reload_weights` reads a folder, and brings weights into the form that layers keep
            them in; where it is older and has none, `model.load_weights` takes pairs of names and tensors.
    """

    model_runner: Any
    _finetooth: str = ""

    def finetooth_load(self, folder: str, name: str) -> str:
        """Take the weights of a folder over.

        Args:
            name: `ft-EPOCH-VERSION-CHECKSUM`.

        Returns:
            The name; empty where the files are not those that it was made of, and nothing is taken.
        """
        if not name.endswith(f"-{checksum(Path(folder))[:12]}"):
            return ""
        self._finetooth = ""  # while some are new and some are old they have no name
        reload = getattr(self.model_runner, "reload_weights", None)
        if reload is not None and "weights_path" in signature(reload).parameters:
            reload(weights_path=folder)
        else:
            self.model_runner.model.load_weights(_tensors(Path(folder)))
        _pack_shared(self.model_runner.model)
        self._finetooth = name
        return name

    def finetooth_weights(self) -> str:
        """The name of the weights; empty for those that the server began with."""
        return self._finetooth


def _pack_shared(model: Any) -> None:
    """Pack weights that several layers share, such as those of a head that is tied to the embedding, for each of them.

    On CPUs every layer computes with a packed copy of its own, and vLLM (0.32.0) renews it only for the layer under
    whose name the file has the weights: a tied head went on with the old ones.
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
