"""Documents of a version: a model card (Markdown) and an ML-BOM (CycloneDX), both only from its signed record.

CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json. Model cards: Mitchell et al., 2019, arXiv:1810.03993.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks.errors import UserError, install_command
from finetooth_toolbox.text.controls import escape_controls

from finetooth_registry.anywhere import AnyRegistry, Version, files_of
from finetooth_registry.records import read, signers_of

_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>#|!"})


def card(registry: AnyRegistry, version: Version) -> str:
    """The model card of a version.

    Raises:
        UserError: the record is missing or cannot be read.
    """
    record = registry.record(version)
    about, (metrics, _) = read(record)["predicate"], registry.metrics(version)
    signers = ", ".join(signers_of(record, registry.trusted())) or "no trusted key"
    stands = f" ({version.status}: {version.reason})" if version.reason else ""
    return "\n".join([
        f"# {_text(version.called)}", "",
        f"Registered {_text(about.get('registered', ''))}{_text(stands)}. Record `{version.record}`, "
        f"signed by {_text(signers)}.", "",
        *_section("Made from", {
            "base": about.get("model"), "SHA-256 of the base": about.get("base_digest"),
            "method": about.get("method"), "SHA-256 of the recipe": about.get("recipe_sha256"),
            **_flat(about.get("picks")),
        }),
        *_section("Data", {**_flat(about.get("classification")), **_flat(about.get("data"))}),
        *_section("Measured", {name: f"{value:.6g}" for name, value in sorted(metrics.items())}),
        *_section("Environment", _flat(about.get("environment"))),
        *_section("Files", files_of(read(record))),
    ])  # fmt: skip


def _section(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    yield f"## {title}"
    yield ""
    if not known:
        yield "The record says nothing of it."
    else:
        yield "| what | value |"
        yield "|---|---|"
        yield from (f"| {_text(name)} | {_text(value)} |" for name, value in known.items())
    yield ""


def _text(value: Any) -> str:
    """A name or value as text, without markup or new lines."""
    return escape_controls(" ".join(str(value).split())).translate(_MARKS)


def _flat(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def bom(registry: AnyRegistry, version: Version) -> str:
    """The ML-BOM of a version: CycloneDX 1.6, JSON.

    Raises:
        UserError: cyclonedx-python-lib is not installed, or the record cannot be read.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise UserError(
            f"an ML-BOM needs cyclonedx-python-lib: {error}", action=install_command("finetooth-registry[bom]")
        ) from error
    content = read(registry.record(version))
    about = content["predicate"]

    def of(kind: ComponentType, name: str, sha256: Any = "", **more: Any) -> Component:
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=str(sha256))] if sha256 else []
        return Component(type=kind, name=name, bom_ref=f"{kind.value}:{name}", hashes=hashes, **more)

    model = of(ComponentType.MACHINE_LEARNING_MODEL, version.model, version.record, version=f"v{version.number}")
    for name in ("method", "recipe_sha256", "base_digest", "registered", "run"):
        if about.get(name):
            model.properties.add(Property(name=f"finetooth:{name}", value=str(about[name])))
    base = of(ComponentType.MACHINE_LEARNING_MODEL, str(about.get("model") or "base"))
    base.components.update(of(ComponentType.FILE, name, sha) for name, sha in _flat(about.get("base")).items())
    model.components.update(of(ComponentType.FILE, name, sha256) for name, sha256 in files_of(content).items())
    data = [of(ComponentType.DATA, name, sha256) for name, sha256 in _flat(about.get("data")).items()]
    made = Bom(components=[base, *data])
    for name, release in {**_flat(about.get("plugins")), **_libraries(about)}.items():
        url = PackageURL("pypi", None, name, str(release))
        made.components.add(of(ComponentType.LIBRARY, name, version=str(release), purl=url))
    made.metadata.component = model
    made.register_dependency(model, made.components)
    written = json.loads(JsonV1Dot6(made).output_as_string())
    written["metadata"]["component"]["modelCard"] = _model_card(about, registry.metrics(version)[0])
    return json.dumps(written, indent=2) + "\n"


def _libraries(about: Mapping[str, Any]) -> dict[str, Any]:
    used = _flat(about.get("environment"))
    return {name: used[name] for name in ("torch", "transformers", "mlx") if name in used}


def _model_card(about: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The part of CycloneDX without a class in the library."""
    data = [{"ref": f"data:{name}"} for name in _flat(about.get("data"))]
    return {
        "modelParameters": {"datasets": data},
        "quantitativeAnalysis": {
            "performanceMetrics": [{"type": name, "value": repr(value)} for name, value in sorted(metrics.items())]
        },
        "properties": [
            {"name": f"finetooth:classification:{name}", "value": json.dumps(value)}
            for name, value in _flat(about.get("classification")).items()
        ],
    }
