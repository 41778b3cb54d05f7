"""`ft doctor weights MODEL`: weights whose scale is far from that of their peers, and a copy in which it is not.

Late layers of some mixtures and hybrids have drifted away in pretraining: one tensor of many of the same shape is a
multiple of the others, and training over it ends in spikes. With s_i the root mean square of a weight and m the median
over its peers, W_i becomes W_i m / s_i where s_i / m is above a threshold.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
from finetooth_hooks import CommandContext, EngineError, UserError

FEWEST = 4
"""Weights that differ by the number of their layer alone, from which on they are peers of one another."""
FLOATS = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")


@dataclass(frozen=True)
class Scale:
    """How large a weight's numbers are.

    Attributes:
        rms: root of the mean of the squares.
        peers: what it is compared with.
    """

    name: str
    rms: float
    peers: str


@dataclass(frozen=True)
class Outlier:
    """A weight beyond the threshold.

    Attributes:
        factor: what brings it to the median of its peers.
    """

    scale: Scale
    median: float
    factor: float


@click.command("weights")
@click.argument("model", metavar="MODEL")
@click.option("--pattern", "patterns", multiple=True, metavar="REGEX", help="Weights whose names it finds are peers; "
    "may be repeated. Default: those whose names differ only in the layer's number.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(min=1, min_open=True), default=1.3, show_default=True,
              help="Report a weight whose scale is this multiple of its peers' median.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Write a copy of the model in which such weights get "
    "their peers' scale; without this option nothing changes.")  # fmt: skip
@click.pass_obj
def command(obj: CommandContext, model: str, patterns: tuple[str, ...], threshold: float, output: Path | None) -> int:
    """Look for weights of MODEL whose scale is far above that of their peers, which makes training over them unstable.

    MODEL is a folder, a name or a hub id with safetensors files. Exit code 1 if there are some and no --output.
    """
    if output is not None and output.exists():
        raise UserError(f"--output: {output} exists", action="name another folder; nothing was changed")
    files = _files(obj, model)
    outlying = outliers(scales(files, [_compiled(pattern) for pattern in patterns]), threshold)
    for outlier in outlying:
        click.echo(
            f"{outlier.scale.name}: scale {outlier.scale.rms:.4g}, {1 / outlier.factor:.2f} times the median "
            f"{outlier.median:.4g} of {outlier.scale.peers}"
        )
    if not outlying:
        click.echo(f"no weight's scale is above {threshold:g} times the median of its peers")
        return 0
    if output is None:
        click.echo("write a copy in which they have their peers' scale by --output FOLDER, and train on that")
        return 1
    write(files, {outlier.scale.name: outlier.factor for outlier in outlying}, output)
    click.echo(f"{len(outlying)} weight{'s' if len(outlying) > 1 else ''} rescaled: {output}")
    return 0


def scales(files: Sequence[Path], patterns: Sequence[re.Pattern[str]]) -> list[Scale]:
    """Of all weights that have peers; a tensor at a time is read.

    Raises:
        UserError: a pattern finds no weight, or a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    weights: list[Scale] = []
    met: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
                    group = _peers(name, patterns)
                    if group is None:
                        continue
                    weight = tensors.get_tensor(name)
                    met.add(group)
                    if str(weight.dtype) in FLOATS and weight.numel():
                        weights.append(Scale(name, float(weight.double().square().mean().sqrt()), group))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read: {error}", action="use a complete model") from error
    unmet = next((pattern.pattern for pattern in patterns if pattern.pattern not in met), None)
    if unmet is not None:
        raise UserError(f"--pattern {unmet}: no weight has such a name", action="see the names in the model's index")
    return weights


def outliers(weights: Sequence[Scale], threshold: float) -> list[Outlier]:
    """Those above `threshold` times the median of their peers, in the order of their names."""
    groups: dict[str, list[Scale]] = {}
    for weight in weights:
        groups.setdefault(weight.peers, []).append(weight)
    outlying: list[Outlier] = []
    for group in groups.values():
        middle = median(weight.rms for weight in group)
        if len(group) >= FEWEST and middle > 0:
            outlying += [
                Outlier(weight, middle, middle / weight.rms) for weight in group if weight.rms > threshold * middle
            ]
    return sorted(outlying, key=lambda outlier: outlier.scale.name)


def write(files: Sequence[Path], factors: Mapping[str, float], output: Path) -> None:
    """A copy of a model's folder with some weights multiplied; complete or not at all.

    Args:
        files: its safetensors files, all in one folder.

    Raises:
        EngineError: it cannot be written.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source = files[0].parent
    beside = None
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        for file in _whole(source):
            shutil.copyfile(file, beside / file.name)
        for file in files:
            with safe_open(file, "pt") as tensors:
                names, about = list(tensors.keys()), tensors.metadata()
            if not factors.keys() & set(names):
                continue
            changed = load_file(file)
            for name in factors.keys() & changed.keys():
                changed[name] = (changed[name].double() * factors[name]).to(changed[name].dtype)
            save_file(changed, beside / file.name, metadata=about)
        beside.chmod(0o755)
        beside.rename(output)
    except OSError as error:
        raise EngineError(f"{output} cannot be written: {error}", action="make room or choose another") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _whole(folder: Path) -> Iterator[Path]:
    """What belongs to a model's folder: its files, but for weights in other layouts."""
    others = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
    return (file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix not in others)


def _peers(name: str, patterns: Sequence[re.Pattern[str]]) -> str | None:
    """What a weight is compared with; None for nothing."""
    if patterns:
        return next((pattern.pattern for pattern in patterns if pattern.search(name)), None)
    template = re.sub(r"(?<=\.)\d+(?=\.)", "N", name)
    return None if template == name else template


def _files(obj: CommandContext, model: str) -> list[Path]:
    """
    Raises:
        UserError: the model is not made of safetensors files in one folder.
    """
    info = obj.context(obj.load({"model": model})).model
    files = [file for file in info.files if file.suffix == ".safetensors"]
    if not files or len({file.parent for file in files}) > 1:
        raise UserError(
            f"{model}: it is not a folder with safetensors files", action="name a model in transformers' layout"
        )
    return files


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern}: {error}", action="write a regular expression") from error
