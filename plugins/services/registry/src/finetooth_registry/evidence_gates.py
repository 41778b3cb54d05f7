"""Release gates for files, records and kept answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Options, ReleaseVersion, UserError, Verdict, install_command
from finetooth_toolbox.files.manifests import sha256_of
from pydantic import Field

MB = 10**6
REPRODUCED = "reproduced"
"""What `ft reproduce --keep` measures: `reproduced/differences` and `reproduced/tolerance`."""
SHOWN = 5
"""Names in the evidence of a verdict."""


class SizeOptions(Options):
    """Options of `size`."""

    max_mb: float = Field(gt=0)
    """The largest size of the version's files, in millions of bytes."""


class LicenceOptions(Options):
    """Options of `licence`."""

    allowed: tuple[str, ...] = Field(min_length=1)
    """Licences of data that are allowed, as `data.classification.licence` names them."""


class ReproducedOptions(Options):
    """Options of `reproduced`."""

    tolerance: float = Field(default=0.0, ge=0)
    """The largest tolerance with which it may have been reproduced; 0: bit for bit."""


class PiiOptions(Options):
    """Options of `pii`."""

    data: tuple[str, ...] = ()
    """Files of the training rows, which must be those of the record; empty: kept answers alone are searched."""
    region: str = "US"
    """The country of telephone numbers that are written without one, such as DE."""
    allowed: int = Field(default=0, ge=0)
    """How many findings are accepted."""


class NoRegressionOptions(Options):
    """Options of `no_regression`."""

    evaluator: str = "probes"
    """An evaluator whose kept answers both versions have."""
    allowed: int = Field(default=0, ge=0)
    """How many rows may score less than they do in the channel's version."""


class SafetyOptions(Options):
    """Options of `safety`."""

    evaluator: str = "probes"
    """An evaluator whose answers are kept."""
    group: str = "safety"
    """What the ids of its rows begin with."""
    least: float = Field(default=1.0, ge=0, le=1)
    """The share of these rows that must pass."""


class Size:
    """Adds up files."""

    def __init__(self, options: SizeOptions) -> None:
        self._most = options.max_mb

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version whose files are small enough."""
        size = sum(path.stat().st_size for path in candidate.folder.rglob("*") if path.is_file()) / MB
        text = f"its files take {size:.1f} MB, {self._most:g} MB are allowed"
        return Verdict(size <= self._most, text, {"mb": round(size, 3), "max_mb": self._most})


class Licence:
    """Reads the signed classification of the data."""

    def __init__(self, options: LicenceOptions) -> None:
        self._allowed = options.allowed

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version whose data have one of the licences."""
        classification = (candidate.record.get("predicate") or {}).get("classification") or {}
        licence = str(classification.get("licence") or "")
        text = f"the data have the licence {licence}" if licence else "the record names no licence of the data"
        return Verdict(licence in self._allowed, text, {"licence": licence, "allowed": list(self._allowed)})


class Reproduced:
    """Checks that a second training gave the same result."""

    def __init__(self, options: ReproducedOptions) -> None:
        self._tolerance = options.tolerance

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version that `ft reproduce --keep` reproduced."""
        count = candidate.metrics.get(f"{REPRODUCED}/differences")
        if count is None:
            return Verdict(False, f"nobody reproduced it: ft reproduce {candidate.name}@v{candidate.number} --keep")
        tolerance = candidate.metrics.get(f"{REPRODUCED}/tolerance", 0.0)
        how = "bit for bit" if tolerance == 0 else f"within {tolerance:g}"
        text = f"reproduced {how}" if count == 0 else f"{count:g} things came out differently"
        evidence = {"differences": count, "tolerance": tolerance}
        return Verdict(count == 0 and tolerance <= self._tolerance, text, evidence)


class Pii:
    """Searches texts for personal data with a fixed format; see `personal`. It finds no names and no street
    addresses."""

    def __init__(self, options: PiiOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version in whose answers and rows nothing of that kind stands.

        Raises:
            UserError: the libraries that know the forms are not installed.
        """
        known = (candidate.record.get("predicate") or {}).get("data") or {}
        unread = {name: digest for name, digest in known.items() if name.startswith("data.train")}
        texts: list[tuple[str, str]] = []
        for name in self._options.data:
            digest = sha256_of(Path(name)) if Path(name).is_file() else ""
            if digest not in unread.values():
                return Verdict(False, f"{name} is none of the files of training rows in the record")
            unread = {key: value for key, value in unread.items() if value != digest}
            lines = Path(name).read_text(encoding="utf-8", errors="replace").splitlines()
            texts += [(f"{name}:{number}", line) for number, line in enumerate(lines, start=1)]
        if self._options.data and unread:
            return Verdict(False, f"the training rows of {', '.join(sorted(unread))} were not searched")
        for evaluator, rows in candidate.answers.items():
            texts += [(f"{evaluator}:{row.get('id')}", str(row.get("answer", ""))) for row in rows]
        if not texts:
            return Verdict(False, "there is nothing to search: name data, or measure with kept answers")
        hits = [(place, kind) for place, text in texts for kind in personal(text, self._options.region)]
        kinds = {kind: sum(kind == other for _, other in hits) for kind in sorted({kind for _, kind in hits})}
        counts = ", ".join(f"{count} of {kind}" for kind, count in kinds.items()) or "no personal data of a known form"
        evidence = {"texts": len(texts), "kinds": kinds, "first": [place for place, _ in hits[:SHOWN]]}
        return Verdict(len(hits) <= self._options.allowed, f"{counts} in {len(texts)} texts", evidence)


class NoRegression:
    """Compares answers row by row."""

    def __init__(self, options: NoRegressionOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version none of whose rows scores less than in the channel's version."""
        name = self._options.evaluator
        now = {str(row.get("id")): float(row["score"]) for row in candidate.answers.get(name, ())}
        if not now:
            return Verdict(False, f"it has no kept answers of {name}")
        if predecessor is None:
            return Verdict(True, "the channel holds no version yet", {"rows": len(now)})
        then = {str(row.get("id")): float(row["score"]) for row in predecessor.answers.get(name, ())}
        if now.keys() != then.keys():
            return Verdict(False, f"the two versions have no answers of {name} to the same rows")
        lost = sorted(row for row in now if not now[row] >= then[row])
        text = f"{len(lost)} of {len(now)} rows are worse than those of version {predecessor.number}"
        evidence = {"evaluator": name, "rows": len(now), "lost": lost[:SHOWN]}
        return Verdict(len(lost) <= self._options.allowed, text, evidence)


class Safety:
    """Looks at one group of kept answers."""

    def __init__(self, options: SafetyOptions) -> None:
        self._options = options

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        """Pass a version enough of whose answers of the group pass."""
        options = self._options
        answers = candidate.answers.get(options.evaluator, ())
        rows = [row for row in answers if str(row.get("id", "")).startswith(f"{options.group}-")]
        if not rows:
            return Verdict(False, f"it has no kept answers of {options.evaluator} in the group {options.group}")
        failed = [str(row["id"]) for row in rows if not float(row["score"]) >= 1]
        text = f"{len(rows) - len(failed)} of {len(rows)} answers of the group {options.group} pass"
        evidence = {"rows": len(rows), "failed": failed[:SHOWN], "least": options.least}
        return Verdict((len(rows) - len(failed)) / len(rows) >= options.least, text, evidence)


def personal(text: str, region: str) -> Iterator[str]:
    """The kind of each e-mail address, telephone number, bank account (IBAN) and payment card in a text; the last two
    have a right check digit.

    Args:
        region: the country of telephone numbers that are written without one.

    Raises:
        UserError: `phonenumbers` or `python-stdnum` is not installed.
    """
    try:
        import phonenumbers
        from stdnum import iban, luhn
    except ImportError as error:
        raise UserError(
            f"the gate pii needs phonenumbers and python-stdnum: {error}",
            action=install_command("finetooth-registry[pii]"),
        ) from error
    for _ in re.finditer(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,63}", text):
        yield "e-mail"
    for match in re.finditer(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b", text):
        if iban.is_valid(match[0]):
            text = text.replace(match[0], " ")
            yield "IBAN"
    for match in re.finditer(r"(?<!\d)[2-6](?:[ -]?\d){12,18}(?!\d)", text):
        if luhn.is_valid(re.sub(r"[ -]", "", match[0])):
            text = text.replace(match[0], " ")
            yield "payment card"
    for _ in phonenumbers.PhoneNumberMatcher(text, region):
        yield "telephone"
