"""What the server counts, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["Metrics"]

# When each counter was made doubles the page and tells nobody anything.
disable_created_metrics()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


# Compared by identity: the registry keeps collectors as keys.
@dataclass(eq=False)
class _Gauges(Collector):
    """A gauge whose values are asked for when somebody reads the metrics."""

    name: str
    help: str
    label: str
    ask: Callable[[], Mapping[str, float]]

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily(self.name, self.help, labels=[self.label])
        for value, number in self.ask().items():
            family.add_metric([value], number)
        return [family]

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(self.name, self.help, labels=[self.label])]


@dataclass
class Metrics:
    """Counters of one application."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = Counter(
            "lamella_http_requests", "Requests answered, by route and status.",
            ["method", "route", "status"], registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "lamella_http_request_seconds", "Time until an answer was complete.",
            ["method", "route"], buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "lamella_http_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.bytes_received = Counter(
            "lamella_http_received_bytes", "Bytes of request bodies.", registry=self.registry
        )
        self.bytes_sent = Counter(
            "lamella_http_sent_bytes", "Bytes of response bodies.", registry=self.registry
        )
        self.failed_logins = Counter(
            "lamella_refused_tokens", "Requests whose token was refused.", registry=self.registry
        )

    def gauge(self, name: str, help_text: str, ask: Callable[[], float]) -> None:
        """Add a number that is asked for when the metrics are read."""
        Gauge(name, help_text, registry=self.registry).set_function(ask)

    def gauges(
        self, name: str, help_text: str, label: str, ask: Callable[[], Mapping[str, float]]
    ) -> None:
        """Add numbers by label that are asked for when the metrics are read."""
        self.registry.register(_Gauges(name, help_text, label, ask))

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry).decode()
