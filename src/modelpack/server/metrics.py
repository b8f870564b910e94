"""What Prometheus sees at `/metrics`: the figures of all workers together."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from .board import NOW, Board
from .processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

    from .board import Row

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_REQUESTS, _DURATIONS, _SERVING = "modelpack_requests", "modelpack_request_duration_seconds", "modelpack_workers"
_HISTOGRAMS = {
    _DURATIONS: ("From the first header to the answer.", ("protocol", "route"), _SECONDS),
    "modelpack_inference_duration_seconds": ("One run of the model.", (), _SECONDS),
    "modelpack_queue_duration_seconds": ("Waiting for a thread.", (), _SECONDS),
    "modelpack_batch_size": ("Rows in one run.", (), _ROWS),
}
_GAUGES = {
    "modelpack_inflight_requests": "Requests being answered.",
    "modelpack_queue_depth": "Requests that wait for a thread.",
    _SERVING: "Workers that have loaded every model and are not draining.",
}
_INFO = ("model", "version", "digest", "precision", "ort_version")
_APART = "\x1f"  # between the name of a family and the values of its labels; no route has it


class Gauge:
    """A number that goes up and down."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def inc(self) -> None:
        """One more."""
        self._row[0] += 1.0

    def dec(self) -> None:
        """One less."""
        self._row[0] -= 1.0

    def set(self, value: float) -> None:
        """Now so many."""
        self._row[0] = value


class Histogram:
    """How often values fell between bounds, and their sum, which is the last number of the row."""

    def __init__(self, row: Row, bounds: tuple[float, ...]) -> None:
        self._row, self._bounds = row, bounds

    def observe(self, value: float) -> None:
        """Count one value."""
        self._row[bisect_left(self._bounds, value)] += 1.0
        self._row[-1] += value


class Metrics:
    """The families that dashboards of modelpack expect; durations are in seconds.

    Only the thread of the event loop may write.

    Args:
        board: What all workers write on; one of its own where there is one worker.
        worker: The number of this one, from 0.
    """

    def __init__(self, board: Board | None = None, worker: int = 0) -> None:
        self._board = board or Board()
        self._sheet = self._board.sheet(worker)
        self.inference = self._histogram("modelpack_inference_duration_seconds")
        self.queue = self._histogram("modelpack_queue_duration_seconds")
        self.batch = self._histogram("modelpack_batch_size")
        self.inflight, self.depth, self.serving = (Gauge(self._sheet.row(NOW + name)) for name in _GAUGES)
        self.load = 0.0  # seconds that loading and warm-up took
        self.until: Callable[[], float] | None = None  # tells when the certificate ends, where there is one
        self._models: list[tuple[str, ...]] = []
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self._counters: dict[tuple[str, str, int], Row] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._registry = CollectorRegistry()
        self._registry.register(Processes(self._board))
        self._registry.register(_Totals(self))

    def _histogram(self, name: str, *labels: str) -> Histogram:
        bounds = _HISTOGRAMS[name][2]
        return Histogram(self._sheet.row(_APART.join((name, *labels)), len(bounds) + 2), bounds)

    def count(self, protocol: str, route: str, code: int) -> None:
        """Count one answer; 499 is a client that left before its answer."""
        key = (protocol, route, code)
        if (row := self._counters.get(key)) is None:
            row = self._counters[key] = self._sheet.row(_APART.join((_REQUESTS, protocol, route, str(code))))
        row[0] += 1.0

    def time(self, protocol: str, route: str, seconds: float) -> None:
        """Record how long one answer took."""
        key = (protocol, route)
        if (histogram := self._durations.get(key)) is None:
            histogram = self._durations[key] = self._histogram(_DURATIONS, protocol, route)
        histogram.observe(seconds)

    def describe(self, models: Iterable[tuple[str, str, Mapping[str, object]]], ort_version: str) -> None:
        """Name the models that are served: name, version and card of each."""
        self._models = [
            (name, version, str(card.get("artifact", "")), str(card.get("precision", "")), ort_version)
            for name, version, card in models
        ]

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let a gauge follow what `read` gives."""
        self._watched.append((gauge, read))

    def refresh(self) -> None:
        """Let the other workers see the gauges that are watched."""
        for gauge, read in self._watched:
            gauge.set(read())

    @property
    def started(self) -> bool:
        """Whether every worker has been ready."""
        return self._board.started(NOW + _SERVING)

    def totals(self) -> Iterable[Metric]:
        """Give the families that workers write, added up."""
        totals = self._board.totals(self._board.sheet)
        yield _requests(totals)
        for name, (text, labels, bounds) in _HISTOGRAMS.items():
            yield _histogram(totals, name, text, labels, bounds)
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(name, text, totals[NOW + name][0])
        ready = self.started and self._sheet.row(NOW + _SERVING)[0]
        yield GaugeMetricFamily("modelpack_ready", "1 when the models answer and the server is not draining.", ready)
        yield GaugeMetricFamily("modelpack_model_load_seconds", "Loading and warm-up.", self.load)
        if self.until:
            yield GaugeMetricFamily("modelpack_tls_certificate_end_seconds", "In seconds since 1970.", self.until())
        died = "Workers that ended unasked and were started again."
        yield CounterMetricFamily("modelpack_worker_deaths", died, self._board.deaths[0])
        info = GaugeMetricFamily("modelpack_model_info", "The model that is served.", labels=_INFO)
        for model in self._models:
            info.add_metric(model, 1.0)
        yield info

    def page(self, accept: str) -> tuple[bytes, str]:
        """Write all families in the exposition format that the client accepts, with its media type."""
        self.refresh()
        encode, media = choose_encoder(accept)
        return encode(self._registry), media


class _Totals(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.totals()


def _requests(totals: Mapping[str, list[float]]) -> Metric:
    family = CounterMetricFamily(_REQUESTS, "Requests answered.", labels=("protocol", "route", "code"))
    for labels, (count,) in _labelled(totals, _REQUESTS):
        family.add_metric(labels, count)
    return family


def _histogram(
    totals: Mapping[str, list[float]], name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, (*counts, total) in _labelled(totals, name):
        below, buckets = 0.0, []
        for bound, count in zip((*bounds, float("inf")), counts, strict=True):
            below += count
            buckets.append((repr(float(bound)) if bound < float("inf") else "+Inf", below))
        family.add_metric(values, buckets, total)
    return family


def _labelled(totals: Mapping[str, list[float]], name: str) -> Iterable[tuple[list[str], list[float]]]:
    """Give the rows of a family, with the values of its labels."""
    for key, numbers in totals.items():
        family, *labels = key.split(_APART)
        if family == name:
            yield labels, numbers
