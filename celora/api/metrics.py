"""/metrics, for Prometheus: the pool as the database has it, and this process's own requests.

No tenant, user, job or key is in it. It asks no API key, which belongs to a tenant; with
CELORA_API_METRICS_TOKEN set it asks for that, and without it answers on this machine alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celora.api.errors import ApiError
from celora.api.meters import Meters
from models.errors import UnavailableError
from models.queries.gauges import ended_jobs, gpu_states, live_jobs
from models.session import transaction
from models.settings import settings

router = APIRouter(tags=["server"])

_LOOPBACK = ("127.0.0.1", "::1")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Pool(Collector):
    """Read from the database at each scrape, so every process of the API says the same."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("celora_database_up", "Whether the database answered.")
        try:
            with transaction() as session:
                live, ended, gpus = live_jobs(session), ended_jobs(session), gpu_states(session)
        except UnavailableError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _gauge("celora_jobs", "Jobs that are not over, by state.", live)
        yield _gauge("celora_gpus", "GPUs, by state.", gpus)
        counted = CounterMetricFamily("celora_jobs_ended", "Jobs by how they ended.", labels=["as"])
        for end, count in ended.items():
            counted.add_metric([end], count)
        yield counted


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """For Prometheus."""
    _require_scraper(request)
    meters: Meters = request.app.state.meters
    content = generate_latest(Pool()) + generate_latest(meters.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


def _require_scraper(request: Request) -> None:
    token = settings().api_metrics_token
    if token:  # an empty one is none, not one that everybody has
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), token.get_secret_value().encode()):
            message = "the token for metrics is needed"
            raise ApiError(401, message, code="invalid_api_key")
        return
    peer = request.client.host if request.client else ""
    if peer not in _LOOPBACK or any(name in request.headers for name in _FORWARDED):
        raise ApiError(404, "Not Found", code="not_found")  # as if it were not there


def _gauge(name: str, words: str, counts: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=["state"])
    for state, count in counts.items():
        family.add_metric([state], count)
    return family
