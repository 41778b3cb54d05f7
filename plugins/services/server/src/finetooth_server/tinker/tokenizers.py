"""The name or folder from which a Tinker client loads the tokenizer of a base model."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks import CommandContext

from finetooth_server.service import Service


def tokenizer_of(service: Service, base: str) -> str:
    """The answer to the client: the local folder of the model or its tokenizer, for clients on this machine; else the
    model's name."""
    recipe = service.settings.models.get(base, {})
    folder = tokenizer_folder(service.settings.folder, base)
    reference = recipe.get("model")
    reference = reference.get("name") if isinstance(reference, dict) else reference
    if Path(str(reference)).is_dir():
        return str(Path(str(reference)).absolute())
    return str(folder.absolute()) if folder.is_dir() else base


def tokenizer_folder(folder: Path, base: str) -> Path:
    """The tokenizer's folder in a server's folder, named like the base model, so that a client started in `tokenizers`
    finds it."""
    parts = [part for part in base.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return folder.joinpath("tokenizers", *parts)


def write_tokenizers(context: CommandContext, service: Service) -> None:
    """Write the tokenizers of base models named by a hub reference."""
    for base, recipe in service.settings.models.items():
        folder = tokenizer_folder(service.settings.folder, base)
        if tokenizer_of(service, base) == base:
            context.context(recipe).tokenizer.save(folder)
