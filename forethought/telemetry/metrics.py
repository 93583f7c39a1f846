"""Prometheus export of a process: a registry per process, with families built at scrape time.

Design: the code being measured counts in plain numbers and knows nothing about Prometheus; collectors
read those numbers when ``/metrics`` is scraped. So a hot path pays for one addition, no series outlives
its subject, and a scrape never blocks: values that must be fetched (such as queue depths) are fetched
beforehand by a loop that records the time. Nothing is global: every registry belongs to its creator. The
price is that a collector lists its families by hand; a test compares ``docs/metrics.md`` with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import forethought
from forethought.telemetry.distribution import Distribution

V = TypeVar("V")

ByLabels: TypeAlias = Mapping[Any, V]
"""By the value of a family's single label (a string), or by all its label values (a tuple of strings)."""


def process_registry(process: str) -> CollectorRegistry:
    """A new registry with the metrics of every process: OS process, Python runtime, and release.

    ``process`` is rollout, reward or learner.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Build(process))
    return registry


def gauge(
    name: str, text: str, values: float | ByLabels[float] | None, labels: Sequence[str] = ()
) -> Metric:
    """A family of gauges by label values; None: no value (yet)."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of_labels, value in _by_labels(values):
        family.add_metric(of_labels, value)
    return family


def counter(
    name: str, text: str, values: float | ByLabels[float], labels: Sequence[str] = ()
) -> Metric:
    """A family of counters by label values; ``name`` ends in _total."""
    family = CounterMetricFamily(name, text, labels=labels)
    for of_labels, value in _by_labels(values):
        family.add_metric(of_labels, value)
    return family


def histogram(
    name: str,
    text: str,
    values: Distribution | ByLabels[Distribution],
    labels: Sequence[str] = (),
) -> Metric:
    """A family of histograms by label values."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for of_labels, distribution in _by_labels(values):
        buckets = [(_bound(bound), num) for bound, num in distribution.cumulative()]
        family.add_metric(of_labels, buckets, distribution.total)
    return family


def _by_labels(values: V | ByLabels[V] | None) -> Iterator[tuple[tuple[str, ...], V]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield (key,) if isinstance(key, str) else key, value
    elif values is not None:
        yield (), values


def _bound(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


class _Build(Collector):
    """The release of this process."""

    def __init__(self, process: str) -> None:
        self._labels = (process, forethought.__version__)

    def collect(self) -> list[Metric]:
        """Always 1; the information is in the labels."""
        text = "Always 1; the labels give the process and its release"
        return [gauge("forethought_build_info", text, {self._labels: 1.0}, ("process", "version"))]
