"""A registry: its commands, exporter, face and pages, and release gates."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, Exporter, Face, Page, ReleaseGate, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="registry",
        build="finetooth_registry.command:registry",
        summary="keep versions of models with signed records, and release them through gates",
        section="Serve",
    )
    yield Command(
        name="reproduce",
        build="finetooth_registry.commands.reproduce:reproduce",
        summary="train a run or a registered version again, and say what came out differently",
        section="Use",
    )
    yield Command(
        name="verify",
        build="finetooth_registry.commands.verify:verify",
        summary="check a registered version or its folder, from the raw data to what is served",
        section="Serve",
    )


@hookimpl
def ft_exporters() -> Iterator[Exporter]:
    yield Exporter(
        name="registry",
        build="finetooth_registry.exporter:RegistryExporter",
        summary="register what was trained, and ask a channel's gates",
        example={"model": "bot", "channel": "candidate"},
        gets_back="finetooth_registry.fetching:run_folder",
        admits="finetooth_registry.exporter:admit",
    )


@hookimpl
def ft_faces() -> Iterator[Face]:
    yield Face(
        name="registry",
        build="finetooth_registry.face:build",
        summary="a registry in a folder, for ft registry on other machines",
    )


@hookimpl
def ft_pages() -> Iterator[Page]:
    yield Page(
        name="registry",
        build="finetooth_registry.board:RegistryPages",
        title="Registry",
        summary="versions with their lineage and measurements, channels, decisions, the log",
    )


@hookimpl
def ft_release_gates() -> Iterator[ReleaseGate]:
    yield ReleaseGate(
        name="at_least",
        build="finetooth_registry.release_gates:AtLeast",
        summary="a metric reaches a bound",
        example={"metric": "eval/loss", "max": 3.0},
    )
    yield ReleaseGate(
        name="not_worse",
        build="finetooth_registry.release_gates:NotWorse",
        summary="a metric is not worse than that of the version in the channel",
        example={"metric": "exact_match/accuracy"},
    )
    yield ReleaseGate(
        name="signed",
        build="finetooth_registry.release_gates:Signed",
        summary="enough trusted keys signed the record",
    )
    yield ReleaseGate(
        name="size",
        build="finetooth_registry.evidence_gates:Size",
        summary="the files of the version are small enough",
        example={"max_mb": 500},
    )
    yield ReleaseGate(
        name="licence",
        build="finetooth_registry.evidence_gates:Licence",
        summary="the data have an allowed licence",
        example={"allowed": ["CC0-1.0"]},
    )
    yield ReleaseGate(
        name="reproduced",
        build="finetooth_registry.evidence_gates:Reproduced",
        summary="it was trained again with the same outcome",
    )
    yield ReleaseGate(
        name="pii",
        build="finetooth_registry.evidence_gates:Pii",
        summary="no e-mail, telephone, IBAN or card number in rows and answers",
    )
    yield ReleaseGate(
        name="no_regression",
        build="finetooth_registry.evidence_gates:NoRegression",
        summary="no probe fails that the version in the channel passes",
    )
    yield ReleaseGate(
        name="safety",
        build="finetooth_registry.evidence_gates:Safety",
        summary="the safety probes pass",
    )
