"""What this process counts of its requests, by the route's template."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
# Another verb is as good as made up: each would be a series of its own.
_VERBS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Meters:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "celora_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "celora_http_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "celora_http_requests_in_flight",
            "Requests that are being answered, streams among them.",
            registry=self.registry,
        )

    def in_flight(self) -> AbstractContextManager[None]:
        return self._in_flight.track_inprogress()

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _VERBS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
