"""Metrics of a loss, combined over micro-batches as `finetooth_hooks.losses.Metric` says."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetooth_hooks import LossResult


@dataclass
class Metrics:
    """Totals and counts by name."""

    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    reduce: dict[str, str] = field(default_factory=dict)

    def add(self, result: LossResult) -> None:
        """Take in the metrics of one evaluation."""
        for name, metric in result.metrics.items():
            self.seen.setdefault(name, []).append((float(metric.total), float(metric.count)))
            self.reduce[name] = metric.reduce

    def values(self) -> dict[str, float]:
        """One number each."""
        found = {}
        for name, parts in self.seen.items():
            totals, counts = zip(*parts, strict=True)
            how = self.reduce[name]
            if how == "mean":
                found[name] = sum(totals) / max(sum(counts), 1e-300)
            else:
                found[name] = {"sum": sum, "max": max, "min": min}[how](totals)
        return found
