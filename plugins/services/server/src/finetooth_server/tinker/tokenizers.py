"""Where a Tinker client finds the tokenizer of a base model: it loads one by a name or a folder of its own machine."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks import CommandContext

from finetooth_server.service import Service


def tokenizer_of(service: Service, base: str) -> str:
    """What the client is told: the folder of the model itself or of its tokenizer if there is one here, which a client
    on the same machine can read; else the model's name."""
    recipe = service.settings.models.get(base, {})
    folder = tokenizer_folder(service.settings.folder, base)
    reference = recipe.get("model")
    reference = reference.get("name") if isinstance(reference, dict) else reference
    if Path(str(reference)).is_dir():
        return str(Path(str(reference)).absolute())
    return str(folder.absolute()) if folder.is_dir() else base


def tokenizer_folder(folder: Path, base: str) -> Path:
    """Of a base model, in a server's folder: by its name, so that a client that looks for the name as a folder finds it
    when it is started in `tokenizers`."""
    parts = [part for part in base.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return folder.joinpath("tokenizers", *parts)


def write_tokenizers(context: CommandContext, service: Service) -> None:
    """Write the tokenizers of base models that are named by a hub's reference."""
    for base, recipe in service.settings.models.items():
        folder = tokenizer_folder(service.settings.folder, base)
        if tokenizer_of(service, base) == base:
            context.context(recipe).tokenizer.save(folder)
