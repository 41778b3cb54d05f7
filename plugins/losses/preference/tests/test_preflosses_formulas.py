"""Every loss against its paper's formula, pair by pair in plain Python floats."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import LossData, LossResult
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks
from hypothesis import given, settings
from hypothesis import strategies as st

ENTRIES = entries_of("finetooth_preflosses.plugin")
FOUND: dict[str, float] = {}
"""By loss: the largest difference to its formula, relative where that is above 1."""


@parametrize_with_checks("finetooth_preflosses.plugin")
def test_conforms(check: Any) -> None:
    check()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigma(x: float) -> float:
    return math.exp(log_sigmoid(x))


class Case:
    """Random answers; of pair p, sums and lengths as plain floats."""

    def __init__(self, seed: int, pairs: int) -> None:
        random = np.random.default_rng(seed)
        self.pairs, shape = pairs, (2 * pairs, 6)
        self.mask = random.random(shape) < 0.7
        self.mask[:, 0] = True
        scale = random.choice([0.3, 3.0])
        self.outputs = {
            name: np.where(self.mask, -scale * random.random(shape) - 1e-3, -np.inf)
            for name in ("logprobs", "logprobs@reference")
        }
        self.labels = np.array([1.0, 0.0] * pairs)
        self.margins = np.repeat(random.random(pairs), 2)
        self.weights = np.where(self.mask & (self.labels[:, None] > 0), 1.0, 0.0)
        self.kl = float(random.random())
        scalars = {"label": self.labels, "margin": self.margins, "kl": np.full(2 * pairs, self.kl)}
        group = np.arange(2 * pairs) // 2
        self.data = LossData(self.mask, np.zeros(shape, np.int64), {"weights": self.weights}, scalars, group)
        policy, known = ([self.total(name, i) for i in range(2 * pairs)] for name in self.outputs)
        self.w, self.l, self.rw, self.rl = policy[0::2], policy[1::2], known[0::2], known[1::2]
        lengths = [int(row.sum()) for row in self.mask]
        self.nw, self.nl = lengths[0::2], lengths[1::2]

    def values(self, name: str, i: int) -> list[float]:
        return [float(value) for value, counts in zip(self.outputs[name][i], self.mask[i], strict=True) if counts]

    def total(self, name: str, i: int) -> float:
        return math.fsum(self.values(name, i))

    def ratios(self) -> list[tuple[float, float]]:
        return [(self.w[p] - self.rw[p], self.l[p] - self.rl[p]) for p in range(self.pairs)]

    def evaluate(self, name: str, state: Any = None, **options: Any) -> LossResult:
        loss = FakeContext(Path(), entries=ENTRIES).loss({"name": name, **options}).fn
        return loss(self.outputs, self.data, state or {})

    def check(self, name: str, wanted: float, **options: Any) -> None:
        part = self.evaluate(name, **options).contributions[name]
        apart = abs(float(part.total) - wanted) / max(1.0, abs(wanted))
        FOUND[name] = max(apart, FOUND.get(name, 0.0))
        assert float(part.total) == pytest.approx(wanted, rel=1e-10, abs=1e-10)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """`FT_PARITY_TABLE=FILE` adds what was found to a table; see tests/parity/test_trl_preference.py."""
    yield
    target = os.environ.get("FT_PARITY_TABLE")
    if target:
        rows = [
            f"| `{name}` | its paper's formula | {apart:.0e} | {'-' if name == 'kto_pair' else 'slope'} |\n"
            for name, apart in FOUND.items()
        ]
        with Path(target).open("a", encoding="utf-8") as file:
            file.writelines(rows)


B, S = 0.3, 0.1
ON_RATIOS: dict[str, tuple[Callable[[float, float], float], dict[str, float]]] = {
    "sigmoid": (
        lambda a, b: -(1 - S) * log_sigmoid(B * (a - b)) - S * log_sigmoid(-B * (a - b)),
        {"label_smoothing": S},
    ),
    "robust": (
        lambda a, b: (-(1 - S) * log_sigmoid(B * (a - b)) + S * log_sigmoid(-B * (a - b))) / (1 - 2 * S),
        {"label_smoothing": S},
    ),
    "hinge": (lambda a, b: max(0.0, 1 - B * (a - b)), {}),
    # KL(q || p) of two outcomes, spelled out
    "exo_pair": (
        lambda a, b: sum(
            q * math.log(q / p) for q, p in ((sigma(B * (a - b)), 1 - S), (1 - sigma(B * (a - b)), S)) if q > 0
        ),
        {"label_smoothing": S},
    ),
    "nca_pair": (
        lambda a, b: -log_sigmoid(B * a) - (log_sigmoid(-B * a) + log_sigmoid(-B * b)) / 2,
        {},
    ),
    "sppo_hard": (lambda a, b: (a - 1 / (2 * B)) ** 2 + (b + 1 / (2 * B)) ** 2, {}),
    "apo_zero": (lambda a, b: 1 - sigma(B * a) + sigma(B * b), {}),
    "apo_down": (lambda a, b: sigma(B * a) + 1 - sigma(B * a - B * b), {}),
    "discopop": (
        lambda a, b: (
            (1 - sigma(B * (a - b) / 0.05)) * -log_sigmoid(B * (a - b))
            + sigma(B * (a - b) / 0.05) * math.exp(-B * (a - b))
        ),
        {},
    ),
    "bco_pair": (lambda a, b: -log_sigmoid(B * a) - log_sigmoid(-B * b), {"shift": False}),
}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 5))
def test_losses_on_ratios(seed: int, pairs: int) -> None:
    case = Case(seed, pairs)
    for name, (formula, options) in ON_RATIOS.items():
        case.check(name, sum(formula(a, b) for a, b in case.ratios()), beta=B, **options)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 5))
def test_ipo_regresses_the_mean_ratio(seed: int, pairs: int) -> None:
    case = Case(seed, pairs)
    apart = [a / case.nw[p] - b / case.nl[p] for p, (a, b) in enumerate(case.ratios())]
    case.check("ipo", sum((d - 1 / (2 * B)) ** 2 for d in apart), beta=B)
    case.check("sigmoid", sum(-log_sigmoid(B * d) for d in apart), beta=B, length_normalized=True)


DIVERGENCES: dict[str, Callable[[float], float]] = {
    # f'(u), by name: f = u log u, -log u, u log u - (u + 1) log((u + 1) / 2), (u^a - a u - 1 + a) / (a (a - 1))
    "reverse_kl": lambda u: math.log(u) + 1,
    "forward_kl": lambda u: -1 / u,
    "js_divergence": lambda u: math.log(2 * u / (1 + u)),
    "alpha_divergence": lambda u: (u**-0.3 - 1) / -0.3,
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_divergences_weigh_the_ratios(name: str) -> None:
    slope = DIVERGENCES[name]
    for seed in range(5):
        case = Case(seed, 3)
        wanted = sum(-log_sigmoid(B * (slope(math.exp(a)) - slope(math.exp(b)))) for a, b in case.ratios())
        case.check("sigmoid", wanted, beta=B, f_divergence=name, f_alpha=0.7)


def test_margins_are_taken_off_the_logit() -> None:
    case = Case(4, 4)
    margins = case.margins[0::2]
    wanted = sum(-log_sigmoid(B * (a - b) - 0.7 * margins[p]) for p, (a, b) in enumerate(case.ratios()))
    case.check("sigmoid", wanted, beta=B, margin_weight=0.7)


def test_ld_alpha_counts_the_longer_tail_less() -> None:
    case, alpha = Case(5, 4), 0.25

    def sums(name: str, p: int) -> tuple[float, float]:
        both = [case.values(name, 2 * p), case.values(name, 2 * p + 1)]
        shared = min(map(len, both))
        first, second = (math.fsum(of[:shared]) + alpha * math.fsum(of[shared:]) for of in both)
        return first, second

    wanted = 0.0
    for p in range(4):
        (w, el), (rw, rl) = sums("logprobs", p), sums("logprobs@reference", p)
        wanted += -log_sigmoid(B * (w - rw - el + rl))
    case.check("sigmoid", wanted, beta=B, ld_alpha=alpha)
    assert any(case.nw[p] != case.nl[p] for p in range(4))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 6))
def test_aot_compares_quantiles(seed: int, pairs: int) -> None:
    case = Case(seed, pairs)

    def total(differences: list[float]) -> float:
        return sum(-(1 - S) * log_sigmoid(B * d) - S * log_sigmoid(-B * d) for d in differences)

    mine = sorted(a - b for a, b in zip(case.w, case.l, strict=True))
    known = sorted(a - b for a, b in zip(case.rw, case.rl, strict=True))
    case.check("aot", total([a - b for a, b in zip(mine, known, strict=True)]), beta=B, label_smoothing=S)
    chosen, rejected = sorted(a for a, _ in case.ratios()), sorted(b for _, b in case.ratios())
    unpaired = total([a - b for a, b in zip(chosen, rejected, strict=True)])
    case.check("aot_unpaired", unpaired, beta=B, label_smoothing=S)


def test_bco_judges_rewards_against_the_mean_of_all_seen() -> None:
    state: Any = {}
    seen: list[float] = []
    for step in range(3):
        case = Case(step, 2 + step)
        seen += [B * ratio for pair in case.ratios() for ratio in pair]
        shift = math.fsum(seen) / len(seen)
        result = case.evaluate("bco_pair", state, beta=B)
        wanted = sum(-log_sigmoid(B * a - shift) - log_sigmoid(-(B * b - shift)) for a, b in case.ratios())
        assert float(result.contributions["bco_pair"].total) == pytest.approx(wanted, rel=1e-10)
        state = result.state
        assert state == {"count": len(seen), "mean": pytest.approx(shift, rel=1e-10)}


def test_kto_pair_judges_one_side_by_the_other() -> None:
    for seed in range(6):
        case = Case(seed, 3)
        above = max(0.0, sum(a for a, _ in case.ratios()) / 3)
        below = max(0.0, sum(b for _, b in case.ratios()) / 3)
        wanted = sum(1 - sigma(B * (a - below)) + 1 - sigma(B * (above - b)) for a, b in case.ratios())
        case.check("kto_pair", wanted, beta=B)
        assert case.evaluate("kto_pair").contributions["kto_pair"].per == "sequences"


def test_kto_weighs_both_kinds() -> None:
    case = Case(7, 4)
    wanted = sum(2.0 * (1 - sigma(B * (a - case.kl))) + 0.5 * (1 - sigma(B * (case.kl - b))) for a, b in case.ratios())
    case.check("kto", wanted, beta=B, desirable_weight=2.0, undesirable_weight=0.5)
    unpaired = sum(2.0 * (1 - sigma(B * a)) + 0.5 * sigma(B * b) for a, b in case.ratios())
    case.check("apo_zero_unpaired", unpaired, beta=B, desirable_weight=2.0, undesirable_weight=0.5)
    metrics = case.evaluate("kto", beta=B).metrics
    mean = float(metrics["rewards/rejected"].total) / float(metrics["rewards/rejected"].count)
    assert mean == pytest.approx(B * sum(b for _, b in case.ratios()) / 4)


def likelihood(case: Case) -> float:
    return -math.fsum(case.w)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 5))
def test_losses_without_a_reference(seed: int, pairs: int) -> None:
    case = Case(seed, pairs)
    means = [(case.w[p] / case.nw[p], case.l[p] / case.nl[p]) for p in range(pairs)]
    odds = [math.log(math.exp(a) / (1 - math.exp(a))) - math.log(math.exp(b) / (1 - math.exp(b))) for a, b in means]
    result = case.evaluate("orpo", beta=B).contributions
    assert float(result["odds_ratio"].total) == pytest.approx(sum(-log_sigmoid(o) for o in odds), rel=1e-9)
    assert (result["odds_ratio"].weight, result["sft"].weight, result["sft"].per) == (B, 1.0, "weights")
    assert float(result["sft"].total) == pytest.approx(likelihood(case), rel=1e-12)
    case.check("simpo", sum(-log_sigmoid(2 * (a - b) - 1.4) for a, b in means), beta=2, gamma=1.4)
    shaped = [((1 - math.exp(a) ** -0.5) / 0.5, (1 - math.exp(b) ** -0.5) / 0.5) for a, b in means]
    case.check("simpo", sum(-log_sigmoid(2 * (a - b)) for a, b in shaped), beta=2, gamma=0, alpha=0.5)
    mixed = case.evaluate("simpo", sft_weight=0.4).contributions["sft"]
    assert (float(mixed.total), mixed.weight) == (pytest.approx(likelihood(case)), 0.4)
    wanted = sum(-log_sigmoid(B * (a - b)) for a, b in zip(case.w, case.l, strict=True))
    case.check("cpo", wanted, beta=B)
    case.check("sft", likelihood(case))


def test_odds_of_a_certain_answer_are_finite() -> None:
    case = Case(0, 1)
    case.outputs["logprobs"] = np.where(case.mask, 0.0, -np.inf)
    assert math.isfinite(float(case.evaluate("orpo").contributions["odds_ratio"].total))


def test_metrics_are_those_users_know() -> None:
    case = Case(3, 4)
    metrics = case.evaluate("hinge", beta=B).metrics
    found = {name: float(metric.total) / float(metric.count) for name, metric in metrics.items()}
    ratios = case.ratios()
    assert found == {
        "rewards/chosen": pytest.approx(B * sum(a for a, _ in ratios) / 4),
        "rewards/rejected": pytest.approx(B * sum(b for _, b in ratios) / 4),
        "rewards/margins": pytest.approx(B * sum(a - b for a, b in ratios) / 4),
        "rewards/accuracies": pytest.approx(sum(a > b for a, b in ratios) / 4),
        "logps/chosen": pytest.approx(sum(case.w) / 4),
        "logps/rejected": pytest.approx(sum(case.l) / 4),
    }


def test_pairs_may_stand_in_any_order_of_sides() -> None:
    case = Case(9, 3)
    turned = Case(9, 3)
    order = np.array([1, 0, 3, 2, 5, 4])
    turned.outputs = {name: of[order] for name, of in case.outputs.items()}
    scalars = {name: of[order] for name, of in case.data.scalars.items()}
    fields = {"weights": case.weights[order]}
    turned.data = LossData(case.mask[order], case.data.targets, fields, scalars, case.data.group)
    for name in ("sigmoid", "aot", "orpo"):
        totals = [[float(p.total) for p in c.evaluate(name).contributions.values()] for c in (case, turned)]
        assert totals[0] == pytest.approx(totals[1])


@pytest.mark.parametrize("empty", [(4, 5), (4,), (5,)])
def test_a_pair_of_which_an_answer_has_no_target_adds_nothing(empty: tuple[int, ...]) -> None:
    """Such as one that fills a micro-batch up."""
    case, alone = Case(4, 3), Case(4, 3)
    case.mask[list(empty)] = False
    case.outputs = {name: np.where(case.mask, of, -np.inf) for name, of in case.outputs.items()}
    alone.outputs = {name: of[:4] for name, of in alone.outputs.items()}
    scalars = {name: of[:4] for name, of in alone.data.scalars.items()}
    fields = {"weights": alone.weights[:4]}
    alone.data = LossData(alone.mask[:4], alone.data.targets[:4], fields, scalars, alone.data.group[:4])
    for name in (*ON_RATIOS, "ipo", "aot", "simpo"):
        options = ON_RATIOS[name][1] if name in ON_RATIOS else {}
        found, wanted = ([float(p.total) for p in one.evaluate(name, **options).contributions.values()]
                         for one in (case, alone))  # fmt: skip
        assert found == pytest.approx(wanted), name


def test_half_a_pair_is_refused() -> None:
    case = Case(0, 1)
    case.data = LossData(case.mask[:1], case.data.targets[:1], {}, {"label": np.ones(1)}, np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="1 sequences are not pairs"):
        case.evaluate("sigmoid")


def test_every_loss_is_in_the_table_of_the_guide() -> None:
    page = Path(__file__).resolve().parents[4] / "docs/guides/preference.md"
    rows = [line.split("|")[1:3] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    compared = {name.strip(" `").split(",")[0] for name, peer in rows if "TRL's" in peer or "formula" in peer}
    assert {entry.name for entry in ENTRIES} <= compared
