"""Saves and restores a whole transformers model, for all adapters without separate parameters.

The model is used through its own methods; this module imports no framework before one is saved.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from finetooth_hooks.bases import AdapterBase
from finetooth_hooks.errors import PlanError, UserError
from finetooth_hooks.protocols import ModelInfo


class WholeModelAdapter(AdapterBase):
    """Base of adapters that train weights of the model itself: they cannot be disabled, and their artifact is the whole
    model.

    Attributes:
        overwrites: what overwrites the base, for the message of `disabled`.
    """

    overwrites: ClassVar[str] = "training layers of the base overwrites it"

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """Refuses to disable the adapter.

        Raises:
            PlanError: always; the base is overwritten as it trains.
        """
        raise PlanError(
            f"adapter: {self.overwrites}, so it cannot serve as its own reference",
            action="choose an adapter that can be disabled, such as one of low rank",
        )

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write a transformers folder with all weights: config and safetensors."""
        export_weights(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back; needs room for a second copy of the model meanwhile.

        Raises:
            UserError: the artifact is of another model.
        """
        restore_weights(model, folder)


@contextmanager
def quiet_library() -> Iterator[None]:
    """No progress bar of transformers' own while entered; nothing to do unless something else has imported it."""
    library: Any = sys.modules.get("transformers")
    logging: Any = None if library is None else library.utils.logging
    shown = logging is not None and logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def export_weights(model: Any, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Write a transformers folder: config and safetensors.

    Args:
        weights: by name, where they are not those that the model's modules hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = model.state_dict() if weights is None else weights
    with quiet_library(), _at_every_rank(model):
        model.save_pretrained(str(folder), state_dict={name: _alone(tensor) for name, tensor in named.items()})
    # safetensors makes its files private; they are as public as those next to them
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)
    _promise_what_is_there(folder / "config.json", named)


def _promise_what_is_there(config: Path, names: Collection[str]) -> None:
    """Take back the promise of layers that predict further tokens, which transformers neither loads nor saves.
    llama.cpp refuses a folder that lacks their tensors."""
    said: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    text = said.get("text_config") or said
    layers = text.get("num_hidden_layers")
    if text.get("num_nextn_predict_layers") and not any(f"layers.{layers}." in name for name in names):
        text["num_nextn_predict_layers"] = 0
        config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _at_every_rank(model: Any) -> Iterator[None]:
    """Inside the `with` block, transformers writes where it is asked to; by itself it writes at rank 0 alone, and each
    rank has a folder of its own."""
    vars(model)["should_save_on_this_rank"] = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del vars(model)["should_save_on_this_rank"]


def _alone(tensor: Any) -> Any:
    """The same memory as a tensor that begins where it does. transformers copies all weights that share
    one tensor, as queries, keys and values do in the stream decoder, before it writes the first."""
    if not hasattr(tensor, "is_contiguous") or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor
    if tensor.nbytes == 0 or tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    import torch

    return torch.from_dlpack(tensor.detach())  # type: ignore[attr-defined]


def restore_weights(model: Any, folder: Path) -> None:
    """Take the parameters that train back from a folder; needs room for a second copy of the model meanwhile.

    Raises:
        UserError: the artifact is of another model.
    """
    saved = read_weights(model, folder)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(saved[name].data)


def read_weights(model: Any, folder: Path) -> dict[str, Any]:
    """Parameters of the artifact by name, read by transformers (which knows how it renames and splits them).

    Raises:
        UserError: it is not a transformers folder, or one of another model.
    """
    other = "name the artifact of a run with this model and adapter"
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no config.json with safetensors files", action=other)
    try:
        # into this model's shape; what differs is collected, so that the message can name it
        with quiet_library():
            saved, info = type(model).from_pretrained(
                str(folder),
                config=copy.deepcopy(model.config),
                dtype="auto",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors each have exceptions of their own for a damaged file
        raise UserError(f"{folder} cannot be read: {str(error).splitlines()[0]}", action=other) from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if info[problem]:
            raise UserError(
                f"{folder} is of another model: {problem.replace('_keys', '')} {sorted(map(str, info[problem]))[0]}",
                action=other,
            )
    return dict(saved.named_parameters())
