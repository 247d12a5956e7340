"""Compare the samples that a server has predicted with the validation samples: metrics and a page."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from fusion_pl.html import render_page
from fusion_pl.serve.metrics import SHARED_FOLDER, Metrics
from fusion_pl.serve.reference import Histogram, Reference
from fusion_pl.types import Prediction, Sample
from fusion_pl.uncertainty.drift import Drift, measure_drift

LEVEL = 0.001  # probability that any quantity of a window is flagged without drift
WINDOW = "fusion_pl_drift_window_samples"
MIN_SAMPLES = 100  # below which the page does not say that there is no drift: the index by chance is then above 0.1
MAX_SHOWN = 20  # bins of a histogram on the page


@dataclass(frozen=True)
class Quantity:
    """Distribution of a quantity of the served samples, beside that of the validation samples.

    Attributes:
        name: name of the quantity, see ``Reference``.
        reference: histogram of the validation samples.
        counts: number of served samples per bin.
        drift: difference between the histograms.
        is_flagged: whether the difference is larger than chance allows.
    """

    name: str
    reference: Histogram
    counts: list[int]
    drift: Drift
    is_flagged: bool

    @property
    def verdict(self) -> str:
        """The result in words."""
        if not self.is_flagged:
            return "too few samples" if self.drift.groups < 2 or sum(self.counts) < MIN_SAMPLES else "no drift found"
        return f"{'small' if self.drift.psi < 0.1 else 'moderate' if self.drift.psi <= 0.25 else 'large'} drift"


class DriftMonitor(Collector):
    """Histograms of the latest samples of all processes of a server.

    Without drift, a quantity is flagged with a probability of about 0.001, divided by the number of quantities, so that
    a window has any flag with a probability of at most about 0.001. This is the probability of one look. Windows
    overlap: with 20 looks while a window is replaced by new samples, there is a flag about six times as often.

    Args:
        reference: histograms of the validation samples.
        metrics: metrics of this process.
        window: number of samples of this process that are compared, the latest ones.
    """

    def __init__(self, reference: Reference, metrics: Metrics, window: int) -> None:
        self.reference = reference
        self.window = window
        self._bins: deque[dict[str, int]] = deque()
        self._counts = Gauge(
            WINDOW,
            "Latest samples, by bin of a quantity.",
            ["quantity", "bin"],
            registry=metrics.registry,
            multiprocess_mode="livesum",
        )
        for quantity, histogram in reference.histograms.items():
            for name in histogram.bins:
                self._counts.labels(quantity, name).set(0)

    def record(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> None:
        """Add the samples of a batch that have predictions, and remove those that leave the window."""
        for bins in self.reference.bins(samples, predictions):
            self._bins.append(bins)
            self._add(bins, 1)
            if len(self._bins) > self.window:
                self._add(self._bins.popleft(), -1)

    def _add(self, bins: dict[str, int], amount: int) -> None:
        for quantity, index in bins.items():
            self._counts.labels(quantity, self.reference.histograms[quantity].bins[index]).inc(amount)

    def quantities(self) -> list[Quantity]:
        """Return the histograms of all processes, and how far they are from those of the validation samples."""
        families = self._counts.collect()
        if SHARED_FOLDER in os.environ:
            families = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
        samples = [sample for family in families for sample in family.samples if sample.name == WINDOW]
        counts = {(sample.labels["quantity"], sample.labels["bin"]): int(sample.value) for sample in samples}
        found = []
        for name, histogram in self.reference.histograms.items():
            window = [counts.get((name, label), 0) for label in histogram.bins]
            drift = measure_drift(histogram.counts, window)
            is_flagged = drift.p_value < LEVEL / len(self.reference.histograms)
            found.append(Quantity(name, histogram, window, drift, is_flagged))
        return found

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that follow from the histograms, in the form of prometheus_client."""
        psi = GaugeMetricFamily("fusion_pl_drift_psi", "Population stability index.", labels=["quantity"])
        chance = GaugeMetricFamily(
            "fusion_pl_drift_psi_by_chance", "Mean of the index without drift.", labels=["quantity"]
        )
        p_value = GaugeMetricFamily("fusion_pl_drift_p_value", "p-value of the chi-square test.", labels=["quantity"])
        flagged = GaugeMetricFamily("fusion_pl_drift_detected", "1 if it is more than chance.", labels=["quantity"])
        for quantity in self.quantities():
            psi.add_metric([quantity.name], quantity.drift.psi)
            chance.add_metric([quantity.name], quantity.drift.psi_by_chance)
            p_value.add_metric([quantity.name], quantity.drift.p_value)
            flagged.add_metric([quantity.name], quantity.is_flagged)
        yield from (psi, chance, p_value, flagged)

    def text(self) -> bytes:
        """Return these metrics in the format of Prometheus."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def page(self, title: str) -> str:
        """Return the page ``/drift``."""
        quantities = self.quantities()
        samples = sum(quantities[0].counts)
        return render_page(
            Path(__file__).parent / "drift.html.jinja",
            title=title,
            samples=samples,
            validation=sum(quantities[0].reference.counts),
            level=LEVEL,
            min_samples=MIN_SAMPLES,
            max_shown=MAX_SHOWN,
            sections=[(quantity, *shown_bins(quantity)) for quantity in quantities],
        )


def shown_bins(quantity: Quantity) -> tuple[list[tuple[str, float, float]], bool]:
    """Return name, share of validation samples and share of served samples of the bins that a page shows.

    The second value is whether these are not all.

    Bins without samples are left out, and of many bins those with the smallest difference.
    """
    totals = max(1, sum(quantity.reference.counts)), max(1, sum(quantity.counts))
    bins = [
        (name, count / totals[0], new / totals[1])
        for name, count, new in zip(quantity.reference.bins, quantity.reference.counts, quantity.counts, strict=True)
        if count or new
    ]
    largest = sorted(bins, key=lambda one: -abs(one[1] - one[2]))[:MAX_SHOWN]
    return [one for one in bins if one in largest], len(bins) > MAX_SHOWN
