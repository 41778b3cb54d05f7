"""The exporter `registry`: a run registers what it trained when it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, Exported, ExporterBase, ExportSource, Options, UserError
from finetooth_saving.origins import RECORD
from pydantic import Field
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry
from finetooth_registry.from_run import data_of, register
from finetooth_registry.releasing import promote
from finetooth_registry.remote import open_registry


class RegistryOptions(Options):
    """Options of `registry`."""

    model: str = Field(min_length=1)
    """The name of the model, as `ft registry add --name` takes it."""
    registry: str = "registry"
    """The registry: a folder, or the URL of a server."""
    channel: str = ""
    """The channel to ask for, such as `candidate`; its gates decide. Empty: none."""
    sign: bool = False
    """Refuse to register without a private key to sign with."""
    key: str = ""
    """The file of the private key; empty: the one that FT_REGISTRY_KEY names, if it is set."""


def admit(options: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Check the options, and the data of a recipe and of its base version against the policy, before the run trains.

    Raises:
        UserError: registry, key or channel is missing, or the policy refuses the data; the registry logs the refusal.
    """
    chosen = RegistryOptions.model_validate(options)
    _checked(chosen).admit(chosen.model, data_of(recipe))


def _checked(options: RegistryOptions) -> AnyRegistry:
    """The registry of an exporter, with its channel and its key checked."""
    registry = open_registry(options.registry)
    if options.channel:
        registry.channel(options.channel)
    _signer(options)
    return registry


def _signer(options: RegistryOptions) -> CryptoSigner | None:
    """
    Raises:
        UserError: it must be signed, and no key is given; or the key cannot be read.
    """
    key = options.key or os.environ.get("FT_REGISTRY_KEY", "")
    if not key and options.sign:
        raise UserError("sign: no key is given", action="set key, or FT_REGISTRY_KEY to a key's file")
    return records.load_signer(Path(key)) if key else None


class RegistryExporter(ExporterBase):
    """Registers a run, and writes the record of its version."""

    def __init__(self, options: RegistryOptions, context: CommandContext) -> None:
        self._options, self._commands = options, context

    def check(self, source: ExportSource) -> None:
        """Check that registry, key and channel exist.

        Raises:
            UserError: one does not.
        """
        _checked(self._options)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Register the run and write the record.

        Raises:
            UserError: the run has not ended, the policy refuses its data, or a gate holds it back; then it stays
                registered.
        """
        options, registry = self._options, open_registry(self._options.registry)
        signer = _signer(options)
        version, unlocked = register(registry, options.model, source.run, signer)
        (folder / RECORD).write_bytes(registry.record(version))
        checks = [f"registered as {version.called}", "signed" if signer else "not signed"]
        if options.channel:
            passed, verdicts = promote(self._commands, registry, version, options.channel, signer=signer)
            if not passed:
                why = "; ".join(f"{name}: {verdict.reason}" for name, verdict in verdicts.items() if not verdict.passed)
                raise UserError(
                    f"{version.called} is registered, and {options.channel} holds it back: {why}",
                    action=f"mend that, then: ft registry promote {version.called} --to {options.channel}",
                )
            checks.append(f"promoted to {options.channel}")
        checks += [f"no lock file: {unlocked}"] if unlocked else []
        return Exported(use=f"ft registry show {version.called} --registry {options.registry}", checks=tuple(checks))
