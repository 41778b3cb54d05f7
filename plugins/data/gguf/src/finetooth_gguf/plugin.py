"""Models kept in a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Exporter, Loader, hookimpl
from finetooth_modelfiles.gguf.reference import ALIASES, why_ours


def claims(reference: str) -> Claim | None:
    """Short names, files inside packages, and paths that end in `.gguf`."""
    reason = why_ours(reference)
    return Claim(2, reason) if reason else None


@hookimpl
def ft_loaders() -> Iterator[Loader]:
    """Offer the loader `gguf`."""
    yield Loader(
        name="gguf",
        build="finetooth_gguf.loader:GgufLoader",
        summary="a GGUF file: a path, or one inside an installed package",
        claims=claims,
        names=tuple(ALIASES),
    )


@hookimpl
def ft_exporters() -> Iterator[Exporter]:
    """Offer the exporters `gguf` and `ollama`."""
    yield Exporter(
        name="gguf", build="finetooth_gguf.exporter:GgufExporter", summary="one GGUF file, for llama.cpp and LM Studio"
    )
    yield Exporter(
        name="ollama",
        build="finetooth_gguf.ollama:OllamaExporter",
        summary="a GGUF file with a Modelfile for `ollama create`",
    )
