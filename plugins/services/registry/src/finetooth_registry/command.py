"""`ft registry`: register runs, measure, sign, verify, release."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.errors import UserError, install_command

from finetooth_registry.commands.collect import collect_blobs
from finetooth_registry.commands.curves import curves
from finetooth_registry.commands.lock import lock
from finetooth_registry.commands.options import HERE, KEY, here
from finetooth_registry.commands.verify import verify

if TYPE_CHECKING:
    from finetooth_hooks import CommandContext, Verdict

    from finetooth_registry.anywhere import AnyRegistry


@click.group("registry")
def registry() -> None:
    """Keep versions of models with signed records, and release them through gates."""


@registry.command("init")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("registry"))
@click.option(
    "--database",
    default="",
    metavar="URL",
    help="postgresql://USER:${PASSWORD}@HOST/NAME for its tables, the variable from the environment; default: SQLite.",
)
@click.option(
    "--blobs",
    default="",
    metavar="URL",
    help="s3://BUCKET/PREFIX for its files, and ?endpoint=https://HOST where it is not AWS; default: the folder.",
)
def init(folder: Path, database: str, blobs: str) -> None:
    """Make an empty registry in FOLDER. Its policy.yaml says what may be registered and released."""
    from finetooth_registry.registry import Registry

    Registry.create(folder, database, blobs)
    click.echo(f"made {folder}; edit {folder / 'policy.yaml'} to change what it accepts")


@registry.command("key")
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Write a new private key to FILE and its public key to FILE.pub."""
    from finetooth_registry import records

    public = Path(f"{file}.pub")
    if file.is_dir() or public.exists():
        raise UserError(f"{file if file.is_dir() else public} exists", action="choose another file")
    public.write_text(records.key_to_json(records.make_key(file)), encoding="utf-8")
    click.echo(f"wrote {file} (keep it secret) and {public} (for ft registry trust)")


@registry.command("trust")
@click.argument("name")
@click.argument("public", type=click.Path(path_type=Path, exists=True))
@HERE
def trust(name: str, public: Path, where: str) -> None:
    """Trust the public key in the file PUBLIC under NAME."""
    from finetooth_registry import records

    here(where).trust(name, records.key_from_json(public.read_text(encoding="utf-8", errors="replace"), str(public)))
    click.echo(f"{where} trusts what the key {name} signs")


@registry.command("revoke")
@click.argument("name")
@HERE
def revoke(name: str, where: str) -> None:
    """Trust the key NAME no longer."""
    here(where).revoke(name)
    click.echo(f"{where} no longer trusts what the key {name} signs")


@registry.command("add")
@click.argument("run")
@click.option("--name", required=True, help="Name of the model.")
@KEY
@click.option(
    "--lock", type=click.Path(path_type=Path), help="Lock file of where it trained; default: this environment."
)
@HERE
@click.pass_obj
def add(commands: CommandContext, run: str, name: str, key: Path | None, lock: Path | None, where: str) -> None:
    """Register what RUN trained as the next version of a model. A failed run is registered with its reason."""
    from finetooth_registry import records
    from finetooth_registry.from_run import register

    place = commands.run_folder(run)
    if place is None:
        raise UserError(f"{run}: no such run", action="give the folder of a run, or its name under runs/")
    signer = records.load_signer(key) if key else None
    version, unlocked = register(_open(where), name, place, signer, lock)
    click.echo(f"{version.called} {version.status}" + ("" if signer else ", not signed (--key FILE signs it)"))
    if unlocked:
        click.echo(f"no lock file: {unlocked}", err=True)


@registry.command("list")
@click.argument("model", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@HERE
def list_versions(model: str, as_json: bool, where: str) -> None:
    """List versions, of one MODEL or of all."""
    from finetooth_registry import records

    opened = _open(where)
    trusted = opened.trusted()
    rows = [
        {
            "version": version.called, "status": version.status, "channels": ", ".join(version.channels),
            "signed by": ", ".join(records.signers_of(opened.record(version), trusted)), "added": version.added,
            "reason": version.reason,
        }
        for version in opened.versions(model)
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    header = ("version", "status", "channels", "signed by", "added")
    _table("Versions", header, [[row[name] for name in header] for row in rows])


@registry.command("show")
@click.argument("version")
@HERE
def show(version: str, where: str) -> None:
    """Print the record and the measurements of VERSION (NAME, NAME@v3 or NAME@CHANNEL) as JSON."""
    from finetooth_registry import records

    opened = _open(where)
    made = opened.version(version)
    metrics, _ = opened.metrics(made)
    content = records.read(opened.record(made))
    about = {"version": made.called, "status": made.status, "reason": made.reason, "channels": list(made.channels)}
    measured = {"metrics": metrics, "settings": opened.settings(made)}
    click.echo(json.dumps({**about, **measured, "record": content}, indent=2))


@registry.command("card")
@click.argument("version")
@HERE
def card(version: str, where: str) -> None:
    """Print the model card of VERSION, in Markdown; it says what the signed record says."""
    from finetooth_registry import documents

    opened = _open(where)
    click.echo(documents.card(opened, opened.version(version)), nl=False)


@registry.command("bom")
@click.argument("version")
@HERE
def bom(version: str, where: str) -> None:
    """Print the bill of materials of VERSION (CycloneDX 1.6, JSON): base, data, files, plugins, libraries."""
    from finetooth_registry import documents

    opened = _open(where)
    click.echo(documents.bom(opened, opened.version(version)), nl=False)


@registry.command("get")
@click.argument("version")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--model-signing",
    "ec_key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign the folder for the command model_signing too, with a key on P-256, P-384 or P-521.",
)
@HERE
def get(version: str, output: Path, ec_key: Path | None, where: str) -> None:
    """Write VERSION to the folder OUTPUT as the run that it was, with its record; every file is checked."""
    from finetooth_registry import modelsigning
    from finetooth_registry.writing import write_version

    if ec_key is not None:
        modelsigning.check(ec_key)
    opened = _open(where)
    made = opened.version(version)
    write_version(opened, made, output)
    click.echo(f"wrote {made.called} to {output}")
    if ec_key is not None:
        click.echo(f"signed for model_signing in {modelsigning.sign_folder(output, ec_key)}")


@registry.command("measure")
@click.argument("version")
@click.option("--evaluator", "evaluators", multiple=True, required=True, metavar="NAME", help="May be repeated.")
@click.option("--data", default="", metavar="DATA", help="Rows to measure on; probes bring their own.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of the recipe.")
@HERE
@click.pass_obj
def measure(
    commands: CommandContext, version: str, evaluators: tuple[str, ...], data: str, overrides: tuple[str, ...],
    where: str,
) -> None:  # fmt: skip
    """Measure VERSION on rows, and keep the numbers and every answer."""
    import tempfile

    from finetooth_registry.writing import write_version

    opened = _open(where)
    made = opened.version(version)
    picks = [json.loads(text) if text.startswith("{") else text for text in evaluators]
    with tempfile.TemporaryDirectory() as place:
        write_version(opened, made, Path(place) / "model")
        metrics, answers, settings = _measured(commands, Path(place) / "model", picks, data, overrides)
    opened.measure(made, metrics, answers, settings)
    _table(made.called, ("metric", "value"), [[name, f"{value:.6g}"] for name, value in metrics.items()])


@registry.command("sign")
@click.argument("version")
@click.option("--key", type=click.Path(path_type=Path), envvar="FT_REGISTRY_KEY", required=True, help="Private key.")
@HERE
def sign(version: str, key: Path, where: str) -> None:
    """Add a signature to the record of VERSION: an approval."""
    from finetooth_registry import records

    opened = _open(where)
    made, signer = opened.version(version), records.load_signer(key)
    click.echo(f"{made.called} is signed by {', '.join(opened.countersign(made, signer)) or 'nobody'}")
    if signer.public_key.keyid not in {trusted.keyid for trusted in opened.trusted().values()}:
        click.echo(
            f"note: {key} is not trusted here, so its signature counts once it is: ft registry trust NAME {key}.pub"
        )


@registry.command("promote")
@click.argument("version")
@click.option("--to", "channel", required=True, metavar="CHANNEL", help="A channel of the policy.")
@click.option("--dry-run", is_flag=True, help="Ask the gates, and change and record nothing.")
@KEY
@HERE
@click.pass_obj
def promote(commands: CommandContext, version: str, channel: str, dry_run: bool, key: Path | None, where: str) -> None:
    """Ask the channel's gates about VERSION, record the decision, and move the channel if all pass.

    REJECT: a gate refused the version. HOLD: what a gate needs is missing, or somebody holds the version back. Both
    end with exit code 1.
    """
    from finetooth_registry import decisions, records, releasing

    opened = _open(where)
    made = opened.version(version)
    passed, verdicts = releasing.promote(
        commands, opened, made, channel, dry_run=dry_run, signer=records.load_signer(key) if key else None
    )
    _show_verdicts(f"{made.called} to {channel}: {decisions.outcome(verdicts)}", verdicts)
    if not passed:
        raise click.exceptions.Exit(1)


@registry.command("hold")
@click.argument("version")
@click.option("--from", "channel", required=True, metavar="CHANNEL", help="A channel of the policy.")
@click.option("--why", default="", help="The reason, for the log.")
@click.option("--lift", is_flag=True, help="End the hold.")
@KEY
@HERE
def hold(version: str, channel: str, why: str, lift: bool, key: Path | None, where: str) -> None:
    """Keep VERSION out of a channel, whatever the gates say, until the hold is lifted."""
    from finetooth_registry import records, releasing

    if lift == bool(why):
        raise UserError("give either --why or --lift", action="--why says for what reason the version is held back")
    opened = _open(where)
    made = opened.version(version)
    releasing.hold(opened, made, channel, why, records.load_signer(key) if key else None)
    click.echo(f"{made.called} may enter {channel} again" if lift else f"{made.called} is held back from {channel}")
    if not lift and channel in made.channels:
        click.echo(f"{channel} holds it still: ft registry rollback {made.model} --channel {channel} --why TEXT")


@registry.command("watch")
@click.argument("model")
@click.option("--channel", default="production", show_default=True, help="A channel of the policy that has `watch`.")
@click.option("--cycles", type=click.IntRange(min=1), default=1, show_default=True, help="Number of measurements.")
@HERE
@click.pass_obj
def watch(commands: CommandContext, model: str, channel: str, cycles: int, where: str) -> None:
    """Measure the version of MODEL in a channel again and again, and log each result.

    The policy says with what, on which rows, how often, and which gates compare the new numbers with the registered
    ones. Exit code 1: a gate did not pass in one of the cycles.
    """
    import tempfile
    import time
    from dataclasses import replace

    from finetooth_registry.releasing import as_released, judge

    opened = _open(where)
    wanted = opened.channel(channel)
    if wanted.watch is None:
        raise UserError(
            f"the policy has no watch for the channel {channel!r}",
            action=f"add channels.{channel}.watch to policy.yaml",
        )
    regressions = 0
    for cycle in range(cycles):
        began = time.monotonic()
        made = opened.in_channel(model, channel)
        if made is None:
            raise UserError(f"{model} has no version in {channel}", action="ft registry promote puts one there")
        with tempfile.TemporaryDirectory() as place:
            registered = as_released(opened, made, Path(place) / "model")
            metrics, answers, _ = _measured(commands, registered.folder, wanted.watch.evaluators, wanted.watch.data, ())
            now = replace(registered, metrics=metrics, answers=answers)
            verdicts = judge(commands, wanted.watch.gates, f"channels.{channel}.watch.gates", now, registered)
        passes = opened.watched(made, channel, metrics, verdicts)
        regressions += not passes
        outcome = f"no regression, {passes} cycle{'s' * (passes > 1)}" if passes else "REGRESSION"
        _show_verdicts(f"{made.called} in {channel}: {outcome}", verdicts)
        if cycle + 1 < cycles:
            time.sleep(max(0.0, wanted.watch.every_hours * 3600 - (time.monotonic() - began)))
    if regressions:
        raise click.exceptions.Exit(1)


@registry.command("rollback")
@click.argument("model")
@click.option("--channel", required=True, help="The channel.")
@click.option("--why", required=True, help="The reason, for the log.")
@KEY
@HERE
def rollback(model: str, channel: str, why: str, key: Path | None, where: str) -> None:
    """Give a channel the version of MODEL that it held before."""
    from finetooth_registry import records, releasing

    version = releasing.roll_back(_open(where), model, channel, why, records.load_signer(key) if key else None)
    click.echo(f"{channel} holds {version.called} again")


@registry.command("revert")
@click.argument("version")
@click.option("--why", required=True, help="The reason, for the log.")
@KEY
@HERE
def revert(version: str, why: str, key: Path | None, where: str) -> None:
    """Reject VERSION by hand: it is kept as reverted, and no channel may hold it."""
    from finetooth_registry import records, releasing

    opened = _open(where)
    rejected = opened.version(version)
    releasing.revert(opened, rejected, why, records.load_signer(key) if key else None)
    click.echo(f"{rejected.called} is reverted, and no channel may hold it")


@registry.command("log")
@click.option("--json", "as_json", is_flag=True, help="Print every event whole, one JSON object a line.")
@HERE
def log(as_json: bool, where: str) -> None:
    """Show what happened, oldest first; the chain is checked."""
    opened = _open(where)
    opened.check_log()
    if as_json:
        from dataclasses import asdict

        for event in opened.events():
            click.echo(json.dumps(asdict(event)))
        return
    cells = [[str(event.sequence), event.at, event.kind, _brief(event.detail)] for event in opened.events()]
    _table("Log", ("event", "at", "what", "about"), cells)


@registry.command("serve", context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@HERE
@click.pass_context
def serve(context: click.Context, options: tuple[str, ...], where: str) -> None:
    """Serve a registry in a folder to other machines, until Ctrl-C. OPTIONS are those of ft serve.

    It listens on 127.0.0.1 unless --host says otherwise, and then needs TLS and an API key (ft keys create): the scope
    read looks, download fetches files, train registers and signs, admin releases and rolls back.
    """
    import os

    root = context.find_root()
    command = root.command.get_command(root, "serve") if isinstance(root.command, click.Group) else None
    if command is None:
        raise UserError("ft serve is not installed", action=install_command("finetooth-server"))
    os.environ["FT_REGISTRY"] = str(here(where).folder.absolute())
    with command.make_context("serve", ["registry", *options], parent=root) as serving:
        command.invoke(serving)


@registry.command("decision")
@click.argument("version")
@click.option("--of", "channel", required=True, metavar="CHANNEL", help="A channel of the policy.")
@HERE
def decision(version: str, channel: str, where: str) -> None:
    """Print the latest decision about VERSION and a channel: a signed statement with what every gate said."""
    from finetooth_registry import decisions

    opened = _open(where)
    click.echo(decisions.latest(opened, opened.version(version), channel).decode("utf-8"))


for _command in (collect_blobs, curves, lock, verify):
    registry.add_command(_command)


def _open(where: str) -> AnyRegistry:
    from finetooth_registry.remote import open_registry

    return open_registry(where)


def _measured(
    commands: CommandContext, model: Path, evaluators: Sequence[Any], data: str, overrides: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, tuple[Mapping[str, Any], ...]], dict[str, Mapping[str, Any]]]:
    """Metrics of a model by `EVALUATOR/METRIC`, and by evaluator every answer and what answers depend on."""
    from dataclasses import asdict

    made = commands.evaluate(str(model), evaluators, data or None, overrides, answers=True)
    metrics = {f"{done.name}/{name}": value for done in made for name, value in done.metrics.items()}
    answers: dict[str, tuple[Mapping[str, Any], ...]] = {
        done.name: tuple(asdict(sample) for sample in done.samples) for done in made if done.samples
    }
    return metrics, answers, {done.name: done.settings for done in made if done.settings}


def _show_verdicts(title: str, verdicts: Mapping[str, Verdict]) -> None:
    cells = [
        [name, "pass" if verdict.passed else "reject" if verdict.evidence else "hold", verdict.reason]
        for name, verdict in verdicts.items()
    ]
    _table(title, ("gate", "says", "why"), cells)


def _brief(detail: Mapping[str, Any]) -> str:
    short = {name: value for name, value in detail.items() if not isinstance(value, dict) and name != "record"}
    return ", ".join(f"{name}: {value}" for name, value in short.items() if value is not None)


def _table(title: str, header: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    from finetooth_toolbox.cli.tables import plain_console, show, table

    console = plain_console()
    show(console, table(console, title, tuple(header), [list(row) for row in cells]))
