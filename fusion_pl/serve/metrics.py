"""Metrics of a server in the format of Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # in which prometheus_client adds up the metrics of several processes
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters and histograms of the requests for predictions and explanations; without any content of a request.

    Args:
        batch_size: largest number of samples per batch.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, batch_size: int) -> None:
        registry = self.registry = CollectorRegistry()
        sizes = sorted({2**i for i in range(12) if 2**i < batch_size} | {batch_size})
        self.requests = Counter(
            "fusion_pl_requests", "Requests, by path and status code.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "fusion_pl_request_seconds",
            "Time from the headers of a request to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.samples = Counter("fusion_pl_samples", "Samples, with errors and without.", ["result"], registry=registry)
        self.batch_samples = Histogram(
            "fusion_pl_batch_samples", "Samples per batch.", buckets=sizes, registry=registry
        )
        self.batch_seconds = Histogram(
            "fusion_pl_batch_seconds", "Time of a batch in the model.", buckets=SECONDS, registry=registry
        )
        self.accepted = Gauge(
            "fusion_pl_accepted_requests",
            "Accepted requests for predictions that are not answered yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def text(self) -> bytes:
        """Return the metrics of all processes of the server."""
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
