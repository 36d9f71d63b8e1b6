"""The HTTP API: creates a second, retrieves with many jobs on record, and what watchers cost a job.

A server process, four clients in this one; the watchers are a process of their own. A scripted job
that is watched is compared with one that is not, in turns, by the seconds that its training took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from sqlalchemy import text

from benchmarks.pool import Pool, running
from models.queries import jobs
from models.session import transaction
from models.spec import JobSpec
from tests.api_server import key_for

AIM_RETRIEVE_MS, AIM_WATCHED = 100.0, 1.25
_CLIENTS = 4
_ROUNDS = 3
_ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
_ALIASES = "long=scripted:?steps=400&step_seconds=0.02&tokens=100"


def run(*, creates: int, on_record: int, retrieves: int, watchers: int) -> bool:
    """Print the figures; True when both aims are met."""
    with running("api", slots=1) as pool:
        api = pool.stack.start(
            "api", "--port", "0", CELORA_MODEL_ALIASES=_ALIASES, CELORA_API_REQUESTS_PER_MINUTE="0"
        )
        serves = re.compile(r"http://127\.0\.0\.1:\d+")
        found = pool.stack.wait_until("the API serves", lambda: serves.search(api.said()))
        headers = {"authorization": f"Bearer {key_for('bench')}"}
        with httpx.Client(base_url=found.group(), headers=headers, timeout=120) as client:
            ratio = _watched(pool, client, watchers)
            _creates(client, creates)
            p95 = _retrieves(client, on_record, retrieves)
    print(f"   aims: retrieve p95 {AIM_RETRIEVE_MS:.0f} ms, watched {AIM_WATCHED} times")
    return p95 <= AIM_RETRIEVE_MS and ratio <= AIM_WATCHED


def _upload(client: httpx.Client) -> str:
    rows = "\n".join([json.dumps(_ROW)] * 12)
    form = {"files": {"file": ("train.jsonl", rows.encode())}, "data": {"purpose": "fine-tune"}}
    return str(client.post("/v1/files", **form).raise_for_status().json()["id"])  # type: ignore[arg-type]


def _creates(client: httpx.Client, count: int) -> None:
    """Jobs that no GPU fits, so that nothing but the API works."""
    file_id = _upload(client)
    body = {
        "model": "owner/base",
        "training_file": file_id,
        "celora": {"gpu_model": "none such"},
    }

    def create(_: int) -> float:
        began = time.perf_counter()
        client.post("/v1/fine_tuning/jobs", json=body).raise_for_status()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        seconds = sorted(clients.map(create, range(count)))
    whole = time.perf_counter() - began
    print(
        f"   creates: {count / whole:.0f} a second by {_CLIENTS} clients over {count:,};"
        f" p50 {_ms(seconds, 0.5):.1f} ms, p95 {_ms(seconds, 0.95):.1f} ms"
    )


def _retrieves(client: httpx.Client, on_record: int, count: int) -> float:
    spec = JobSpec(base_model="owner/base", dataset="/none", metadata={"team": "a"})
    with transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(
            _LOAD,
            {"jobs": on_record, "spec": json.dumps(spec.model_dump(mode="json"))},
        )
    with transaction() as session:
        session.execute(text("ANALYZE jobs"))
        ids = session.scalars(_SOME, {"count": count}).all()
    retrieved = sorted(_timed(client, f"/v1/fine_tuning/jobs/{one}") for one in ids)
    listed = sorted(_timed(client, f"/v1/fine_tuning/jobs?after={one}") for one in ids[:100])
    rare = sorted(
        _timed(client, "/v1/fine_tuning/jobs?metadata[team]=nobody") for _ in range(_ROUNDS)
    )
    p95 = _ms(retrieved, 0.95)
    print(
        f"   {on_record:,} jobs on record: retrieve p50 {_ms(retrieved, 0.5):.1f} ms,"
        f" p95 {p95:.1f} ms over {count}; a page of 20 from anywhere"
        f" p95 {_ms(listed, 0.95):.1f} ms;"
        f" a metadata filter that nothing passes {_ms(rare, 0.5):.0f} ms"
    )
    return p95


def _watched(pool: Pool, client: httpx.Client, watchers: int) -> float:
    file_id = _upload(client)
    alone, watched, heard = [], [], 0
    for _ in range(_ROUNDS):
        alone.append(_train_seconds(pool, _create_long(client, file_id)))
        job_id = _create_long(client, file_id)
        context = multiprocessing.get_context("spawn")
        messages = context.Value("l", 0)
        process = context.Process(
            target=_watch,
            args=(str(client.base_url), client.headers["authorization"], job_id, watchers),
            kwargs={"messages": messages},
        )
        process.start()
        watched.append(_train_seconds(pool, job_id))
        process.join(60)
        heard += messages.value
    with_them, without = statistics.median(watched), statistics.median(alone)
    ratio = with_them / without
    print(
        f"   {watchers} watchers: a job of 400 steps trained for {with_them:.2f} s,"
        f" alone {without:.2f} s: {ratio:.3f} times;"
        f" each watcher got {heard / watchers / _ROUNDS:.0f} messages and the end"
    )
    return ratio


def _create_long(client: httpx.Client, file_id: str) -> str:
    body = {"model": "long", "training_file": file_id, "celora": {"evaluate": False}}
    return str(client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"])


def _train_seconds(pool: Pool, job_id: str) -> float:
    def result() -> dict[str, Any] | None:
        with transaction() as session:
            job = jobs.get_job(session, job_id)
            return job.result if job.finished_at is not None else None

    done = pool.stack.wait_until("the job ends", result, seconds=300)
    return float(done["train_seconds"])


def _watch(url: str, authorization: str, job_id: str, watchers: int, *, messages: Any) -> None:
    """All watchers, to the job's end."""

    async def one(client: httpx.AsyncClient) -> None:
        ended = False
        async with client.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/stream") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    with messages.get_lock():
                        messages.value += 1
                    ended = ended or line == "event: end"
        assert ended  # noqa: S101

    async def everyone() -> None:
        async with httpx.AsyncClient(
            base_url=url,
            headers={"authorization": authorization},
            timeout=300,
            limits=httpx.Limits(max_connections=None),
        ) as client:
            await asyncio.gather(*(one(client) for _ in range(watchers)))

    asyncio.run(everyone())


def _timed(client: httpx.Client, path: str) -> float:
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - began


def _ms(ordered: list[float], part: float) -> float:
    return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


_LOAD = text("""
    INSERT INTO jobs (id, tenant_id, user_name, spec, base_model, method, priority, state, stage,
                      step, total_steps, created_at, queued_at, started_at, finished_at)
    SELECT 'ftjob-' || substr(md5(n::text) || md5((-n)::text), 1, 24), tenants.id, 'ann',
           CAST(:spec AS jsonb), 'owner/base', 'lora', 0, 'completed', 'evaluate', 100, 100,
           now() - n * interval '1 minute', now() - n * interval '1 minute',
           now() - n * interval '1 minute', now() - n * interval '1 minute'
    FROM generate_series(1, :jobs) AS n, tenants WHERE tenants.name = 'bench'
""")
_SOME = text("""
    SELECT id FROM (SELECT id FROM jobs WHERE state = 'completed' AND step = 100 ORDER BY md5(id))
        AS shuffled LIMIT :count
""")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--creates", type=int, default=1000)
    parser.add_argument("--on-record", type=int, default=100_000)
    parser.add_argument("--retrieves", type=int, default=1000)
    parser.add_argument("--watchers", type=int, default=200)
    asked = parser.parse_args()
    met = run(
        creates=asked.creates,
        on_record=asked.on_record,
        retrieves=asked.retrieves,
        watchers=asked.watchers,
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
