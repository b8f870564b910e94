"""What Prometheus sees at `/metrics`; every application has a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """The families that dashboards of modelpack expect; durations are in seconds."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "modelpack_requests_total", "Requests answered.", ["protocol", "route", "code"], registry=registry
        )
        self.request = Histogram(
            "modelpack_request_duration_seconds", "From the first header to the answer.", ["protocol", "route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.inference = Histogram(
            "modelpack_inference_duration_seconds", "One run of the model.", buckets=_SECONDS, registry=registry
        )
        self.queue = Histogram(
            "modelpack_queue_duration_seconds", "Waiting for a thread.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram("modelpack_batch_size", "Rows in one run.", buckets=_ROWS, registry=registry)
        self.inflight = Gauge("modelpack_inflight_requests", "Requests being answered.", registry=registry)
        self.depth = Gauge("modelpack_queue_depth", "Requests that wait for a thread.", registry=registry)
        self.ready = Gauge(
            "modelpack_ready", "1 when the model answers and the server is not draining.", registry=registry
        )
        self.load = Gauge("modelpack_model_load_seconds", "Loading and warm-up.", registry=registry)
        self._info = Gauge(
            "modelpack_model_info", "The model that is served.",
            ["model", "version", "digest", "precision", "ort_version"], registry=registry,
        )  # fmt: skip
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}

    def count(self, protocol: str, route: str, code: int) -> None:
        """Count one answer; 499 is a client that left before its answer."""
        key = (protocol, route, code)
        if (counter := self._counters.get(key)) is None:  # labels() costs more than the count itself
            counter = self._counters[key] = self._requests.labels(protocol, route, str(code))
        counter.inc()

    def time(self, protocol: str, route: str, seconds: float) -> None:
        """Record how long one answer took."""
        key = (protocol, route)
        if (histogram := self._durations.get(key)) is None:
            histogram = self._durations[key] = self.request.labels(protocol, route)
        histogram.observe(seconds)

    def describe(self, models: Iterable[tuple[str, str, Mapping[str, object]]], ort_version: str) -> None:
        """Name the models that are served: name, version and card of each."""
        self._info.clear()
        for name, version, card in models:
            digest, precision = (str(card.get(key, "")) for key in ("artifact", "precision"))
            self._info.labels(name, version, digest, precision, ort_version).set(1)

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let a gauge be read when it is asked for."""
        gauge.set_function(read)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Write all families in the exposition format that the client accepts, with its media type."""
        encode, media = choose_encoder(accept)
        return encode(self.registry), media
