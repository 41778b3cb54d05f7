"""Locates a model, and reads its config and tokenizer with transformers' auto classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from finetooth_hooks import Context, RecipeError
from finetooth_toolbox.files.contents import FileContents
from finetooth_toolbox.files.hub import without_retries
from finetooth_toolbox.files.missing import or_moved
from finetooth_toolbox.text.strict_json import received
from finetooth_toolbox.text.tokenizers import FastTokenizer

from finetooth_modelfiles import checkpoint
from finetooth_modelfiles.config_bounds import check_config, check_sizes
from finetooth_modelfiles.failures import explained
from finetooth_modelfiles.rope_scaling import RopeScaling, scale_positions

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json")
"""Files of a hub id that hold a model."""
QUANTO = "quanto_qmap.json"
"""The file by which optimum-quanto knows its folders: how each module is stored; their config says nothing of it."""
PADS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<unk>", "[UNK]")
"""Special tokens made for padding, and then some that text does not produce."""


@dataclass(frozen=True)
class ModelFiles:
    """Folders and hub ids in transformers' layout.

    Attributes:
        context: receives notes about choices.
        revision: branch, tag or commit of a hub id; None is its main branch.
        trust_remote_code: Python code that comes with a model is run.
        before: called with the location before a config is read, to register its architecture.
        rope_scaling: more positions than the model was made for.
        after: called with a config and its location, to change it.
    """

    context: Context
    revision: str | None = None
    trust_remote_code: bool = False
    before: Callable[[str], None] | None = None
    rope_scaling: RopeScaling | None = None
    after: Callable[[Any, str], None] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` besides the name."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}

    @contextmanager
    def reading(self, reference: str, part: str = "config.json") -> Iterator[str]:
        """Where the model is; inside, failures are explained, and a hub that cannot be reached is tried only once."""
        with explained(reference, part=part):
            located = locate(reference)
            if Path(located).is_dir():
                yield located
                return
            with without_retries() as why:
                yield located
        if why:
            self.context.note(
                f"the model hub cannot be reached ({why}): {reference} is the copy on this machine",
                topic=f"offline:{reference}",
            )

    def config(self, reference: str) -> Any:
        """transformers' config of a model.

        Raises:
            RecipeError: nothing is there, it is not a model, or the hub cannot be reached.
        """
        with self.reading(reference) as located:
            written = received(raw.read_bytes()) if (raw := Path(located) / "config.json").is_file() else {}
            check_config(written, reference)
            config = self.config_at(located)
        check_config(config.to_dict(), reference)
        if written:
            check_sizes(written, reference)
        return config

    def config_at(self, located: str) -> Any:
        """transformers' config of a folder or hub id that was located; failures are the library's own."""
        if self.before is not None:
            self.before(located)
        config = transformers.AutoConfig.from_pretrained(located, **self.arguments)
        if (kinds := Path(located) / QUANTO).is_file() and not getattr(config, "quantization_config", None):
            of_modules = list(received(kinds.read_bytes()).values())
            config.quantization_config = {"quant_method": "quanto", **max(of_modules, key=of_modules.count)}
        if self.rope_scaling is not None:
            scale_positions(config, self.rope_scaling, located)
        if self.after is not None:
            self.after(config, located)
        return config

    def tokenizer(self, reference: str) -> FastTokenizer:
        """The model's tokenizer; one without a pad token gets one that text does not produce, and one that draws at
        random no longer does.

        Raises:
            RecipeError: the model has no tokenizer, or one without a fast implementation.
        """
        with self.reading(reference, part="tokenizer") as located:
            # where mistral-common is installed, as with vLLM, Mistral's would be one without offsets
            tokenizer = transformers.AutoTokenizer.from_pretrained(located, mistral_format=False, **self.arguments)
        if not tokenizer.is_fast:
            raise RecipeError(
                "model",
                f"{reference} has only a slow tokenizer ({type(tokenizer).__name__}), which gives no character offsets",
                action="convert it to a tokenizer.json with transformers",
            )
        if str(getattr(tokenizer, "vocab_file", "")).endswith("tekken.json"):
            _name_ends(tokenizer)
        if tokenizer.pad_token_id is None:
            self.context.note(choose_pad(tokenizer))
        if remark := without_dropout(tokenizer):
            self.context.note(remark)
        return FastTokenizer(tokenizer)

    def contents(self, reference: str) -> FileContents:
        """What decides what a model computes, by file; of a hub id what is on this machine when it is asked. Scaled
        positions count as a file of their own."""
        folder = Path(locate(reference))
        scaled = {} if self.rope_scaling is None else {"rope_scaling": self.rope_scaling.digest()}
        return FileContents(
            checkpoint.contents(folder) if folder.is_dir() else partial(self._fetched, reference), scaled
        )

    def _fetched(self, reference: str) -> dict[str, Path]:
        """The files of a hub id that are on this machine, by name; none before they are fetched."""
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(reference, revision=self.revision, local_files_only=True))
            return checkpoint.contents(folder)
        except (OSError, ValueError, RecipeError):
            return {}

    def folder(self, located: str) -> Path:
        """Where the files are; those of a hub id are fetched."""
        folder = Path(located)
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(located, revision=self.revision, allow_patterns=list(WANTED)))


def locate(reference: str) -> str:
    """The folder that holds the model: the one named, or `artifact` in it (a run folder); else the hub id as it is.

    Raises:
        RecipeError: a path that holds nothing, or an adapter without its base.
    """
    folder = Path(reference)
    for candidate in (folder, folder / "artifact"):
        if (candidate / "config.json").is_file():
            return str(candidate)
        if (candidate / "adapter_config.json").is_file():
            raise RecipeError(
                "model", f"{candidate} holds an adapter, not a model", action="merge it into its base first: ft merge"
            )
    if folder.is_dir():
        raise RecipeError("model", f"the folder {reference} has no config.json", action="name the folder of a model")
    if folder.exists() or reference.startswith((".", "/", "~")):
        raise RecipeError(
            "model",
            f"{reference} is not a folder",
            action=or_moved("name the folder of a model, or a hub id org/name", reference),
        )
    return reference


def _name_ends(tokenizer: Any) -> None:
    """Say which tokens of mistral-common's file begin and end a text; only its own class knows."""
    for role, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        if getattr(tokenizer, role, None) is None:
            setattr(tokenizer, role, token)


def choose_pad(tokenizer: Any) -> str:
    """Set the pad token of a transformers tokenizer to a special token that is not the end-of-text token.

    Padding with that one would hide real ends from tools that mask by pad id. No token is added: the embedding stays.

    Returns:
        The choice, for the plan.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    chosen = next((name for name in PADS if name in special and name not in taken), None)
    if chosen is not None:
        tokenizer.pad_token = chosen
        return f"the tokenizer has no pad token; {chosen} serves as one"
    tokenizer.pad_token = tokenizer.eos_token
    return (
        f"the tokenizer has no pad token and no other to spare, so its end-of-text token {tokenizer.eos_token} pads; "
        "training masks by position and is not affected"
    )


def without_dropout(tokenizer: Any) -> str:
    """Switch off the BPE-dropout of a transformers tokenizer, which leaves out merges at random (Provilkov et al.,
    2020, arXiv:1910.13267).

    The library draws from a state of its own that nobody can seed: the same text would be other tokens each time, in
    other data than those a cache keeps, and in prompts too. Unigram tokenizers do not keep such a setting in their
    files.

    Returns:
        What was done, for the plan; empty if it has none.
    """
    model = tokenizer.backend_tokenizer.model
    share = getattr(model, "dropout", None)
    if not share:
        return ""
    model.dropout = None
    return (
        f"the tokenizer leaves out {100 * share:g} % of its merges at random (BPE-dropout), which nobody can seed; "
        "this is switched off, so that a text is always the same tokens"
    )
