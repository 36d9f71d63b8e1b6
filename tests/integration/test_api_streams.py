"""Watching a job over HTTP: nothing lost, nothing twice, and one reader however many watch."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from celora.api import feeds
from celora.api.keys import create_key
from models.queries.api_keys import revoke_key
from models.queries.attempts import Claim
from models.queries.following import NewEvent, News, Place, read_news
from models.queries.history import Progress, add_event, events_of, record_metrics
from models.session import engine, transaction
from models.states import Outcome, Stage
from tests import records
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables
from tests.waiting import until

WATCHERS = 100


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    with serving() as running:
        yield running


@pytest.fixture
def claim(database: str) -> Claim:  # noqa: ARG001 (where it runs)
    records.clear()
    return records.running(tenant="watched", evaluate=False)


@pytest.fixture
def client(server: ApiServer, claim: Claim) -> Iterator[httpx.Client]:  # noqa: ARG001 (before a key)
    headers = {"authorization": f"Bearer {key_for('watched')}"}
    with httpx.Client(base_url=server.v1, headers=headers, timeout=60) as made:
        yield made


@dataclass(frozen=True)
class Said:
    id: str
    kind: str
    data: dict[str, Any]


def listen_to(client: httpx.Client, job_id: str, last_id: str | None = None) -> Iterator[Said]:
    headers = {} if last_id is None else {"last-event-id": last_id}
    with client.stream("GET", f"/fine_tuning/jobs/{job_id}/stream", headers=headers) as answer:
        if answer.status_code == 204:
            return
        assert answer.status_code == 200
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if not line and "event" in fields:
                yield Said(fields["id"], fields["event"], json.loads(fields["data"]))
                fields = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value


def facts(said: list[Said]) -> tuple[list[str], list[tuple[int, str]]]:
    """Ids of events, and the points of the curves, as they came."""
    events = [one.data["id"] for one in said if one.kind == "event"]
    points = [
        (point["step"], name)
        for one in said
        if one.kind == "metrics"
        for point in one.data["points"]
        for name in point
        if name != "step"
    ]
    return events, points


def step(claim: Claim, number: int, **values: float) -> None:
    with transaction() as session:
        record_metrics(
            session,
            claim.job_id,
            claim.fence,
            Stage.TRAIN,
            [(name, number, float(value)) for name, value in values.items()],
            progress=Progress(step=number, total_steps=5, train_loss=values.get("train_loss")),
        )


def run_to_the_end(claim: Claim) -> None:
    for number in range(1, 6):
        step(claim, number, train_loss=5 - number, learning_rate=1e-4)
        if number == 3:  # a held-out loss comes after the others of its step
            step(claim, number, eval_loss=2.5)
    records.end(claim.job_id, claim.fence, Outcome.COMPLETED)


ALL_POINTS = sorted(
    [(n, name) for n in range(1, 6) for name in ("train_loss", "learning_rate")]
    + [(3, "valid_loss")]
)


def test_a_stream_goes_on_behind_any_message(client: httpx.Client, claim: Claim) -> None:
    run_to_the_end(claim)
    whole = list(listen_to(client, claim.job_id))
    events, points = facts(whole)
    assert len(set(events)) == len(events)
    assert sorted(points) == ALL_POINTS
    assert [one.kind for one in whole][-1] == "end"
    assert whole[-1].data["status"] == "succeeded"
    messages = [one.data["message"] for one in whole if one.kind == "event"]
    assert (messages[0], messages[-1]) == ("Submitted by ada", "Completed")
    for place, message in enumerate(whole[:-1]):
        rest = list(listen_to(client, claim.job_id, message.id))
        assert facts(rest) == facts(whole[place + 1 :])
        assert rest[-1].kind == "end"
    assert not list(listen_to(client, claim.job_id, whole[-1].id))  # a browser would ask for ever


def test_a_job_that_is_run_again_has_more_to_tell(client: httpx.Client, claim: Claim) -> None:
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error={"code": "x", "message": "bad"})
    first = list(listen_to(client, claim.job_id))
    assert first[-1].data["status"] == "failed"
    assert client.post(f"/fine_tuning/jobs/{claim.job_id}/cancel").json()["status"] == "failed"
    with transaction() as session:
        from models.queries.jobs import retry_job

        retry_job(session, claim.job_id)
    client.post(f"/fine_tuning/jobs/{claim.job_id}/cancel")
    more = list(listen_to(client, claim.job_id, first[-1].id))
    messages = [one.data["message"] for one in more if one.kind == "event"]
    assert messages == ["Runs again on request", "Cancelled while it waited"]


def test_steps_that_are_done_again_are_told_again(claim: Claim) -> None:
    step(claim, 1, train_loss=4)
    step(claim, 2, train_loss=3)
    records.end(claim.job_id, claim.fence, Outcome.LOST)
    records.add_gpu(1)
    assert [one.job_id for one in records.place()] == [claim.job_id]
    again = records.claimed(claim.job_id, Stage.TRAIN)
    place = _place_of(claim.job_id)
    step(again, 1, train_loss=4)
    news = _news(claim.job_id, place)
    assert [(point.step, point.fence) for point in news.points] == [(1, again.fence)]


def test_what_is_committed_late_is_told_once_and_in_order(claim: Claim) -> None:
    """The first writer has the lower id and commits last."""
    place = _place_of(claim.job_id)
    with Session(engine()) as slow, slow.begin():
        add_event(slow, claim.job_id, "tracker", "first")
        with transaction() as session:
            add_event(session, claim.job_id, "tracker", "second")
        held = _news(claim.job_id, place)
        assert [event.message for event in held.events] == []
        assert held.after == place
    told: list[str] = []
    while len(told) < 2:  # another program's transaction may hold them back for a while
        news = _news(claim.job_id, place)
        told += [event.message for event in news.events]
        place = news.after
    assert told == ["first", "second"]
    assert not _news(claim.job_id, place).events


def test_concurrent_writers_lose_nothing(claim: Claim) -> None:
    """A reader that goes on behind what it saw, while four threads write."""
    writing = threading.Event()
    seen: list[NewEvent] = []

    def write(writer: int) -> None:
        for number in range(40):
            with transaction() as session:
                add_event(session, claim.job_id, "tracker", f"{writer}.{number}")

    def read() -> None:
        place = Place()
        last = False
        while not last:
            last = writing.is_set()
            news = _news(claim.job_id, place)
            seen.extend(news.events)
            place = news.after

    with ThreadPoolExecutor(5) as pool:
        reading = pool.submit(read)
        for done in [pool.submit(write, writer) for writer in range(4)]:
            done.result()
        writing.set()
        reading.result()
    every = _count_events(claim.job_id)
    while len(seen) < every:
        seen += _news(claim.job_id, Place((seen[-1].xact, seen[-1].id))).events
    said = [event.message for event in seen if event.kind == "tracker"]
    assert sorted(said) == sorted(f"{writer}.{n}" for writer in range(4) for n in range(40))
    assert all(a < b for a, b in pairwise((event.xact, event.id) for event in seen))


def test_many_watchers_share_one_reader(
    server: ApiServer, client: httpx.Client, claim: Claim
) -> None:
    """Each sees all of it, the database sees one connection that listens, and none stays."""
    key = client.headers["authorization"]
    told: list[list[Said]] = []
    mid = threading.Event()
    listeners: list[int] = []

    async def watch(session: httpx.AsyncClient, ready: Callable[[], None]) -> None:
        said: list[Said] = []
        fields: dict[str, str] = {}
        path = f"/fine_tuning/jobs/{claim.job_id}/stream"
        async with session.stream("GET", path) as answer:
            async for line in answer.aiter_lines():
                if not line and "event" in fields:
                    said.append(Said(fields["id"], fields["event"], json.loads(fields["data"])))
                    if fields["event"] == "progress" and not mid.is_set():
                        ready()
                    fields = {}
                elif line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
        told.append(said)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=WATCHERS + 10)
        headers = {"authorization": str(key)}
        count = 0

        def ready() -> None:
            nonlocal count
            count += 1
            if count >= WATCHERS:
                mid.set()

        async with httpx.AsyncClient(
            base_url=server.v1, headers=headers, limits=limits, timeout=120
        ) as session:
            await asyncio.gather(*(watch(session, ready) for _ in range(WATCHERS)))

    watching = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    watching.start()
    assert mid.wait(120)
    until(lambda: _listeners() == 1)
    listeners.append(_listeners())
    run_to_the_end(claim)
    watching.join(120)
    assert listeners == [1]
    assert len(told) == WATCHERS
    for said in told:
        events, points = facts(said)
        assert len(set(events)) == len(events)
        assert sorted(points) == ALL_POINTS
        assert said[-1].kind == "end"
    until(lambda: _listeners() == 0)


def test_a_watcher_that_leaves_is_forgotten(client: httpx.Client, claim: Claim) -> None:
    said = listen_to(client, claim.job_id)
    while next(said).kind != "progress":
        pass
    until(lambda: _listeners() == 1)
    said.close()  # type: ignore[attr-defined]  # a generator
    until(lambda: _listeners() == 0)


def test_a_stream_ends_with_its_job_and_with_its_key(
    client: httpx.Client, server: ApiServer, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_KEYS_SECONDS", 0.1)
    made = create_key(tenant="watched", user="bob", scopes=["read"])
    with httpx.Client(
        base_url=server.v1, headers={"authorization": f"Bearer {made.key}"}, timeout=60
    ) as other:
        mine, theirs = listen_to(client, claim.job_id), listen_to(other, claim.job_id)
        for said in (mine, theirs):
            while next(said).kind != "progress":
                pass
        with transaction() as session:
            revoke_key(session, made.id)
        assert not [one for one in theirs if one.kind == "end"]
    step(claim, 1, train_loss=4)
    assert "metrics" in (next(mine).kind, next(mine).kind)  # the other goes on
    with transaction() as session:
        session.execute(text("DELETE FROM jobs"))
    assert not [one for one in mine if one.kind == "end"]
    until(lambda: _listeners() == 0)


def test_a_key_and_a_server_have_so_many_streams(client: httpx.Client, claim: Claim) -> None:
    path = f"/fine_tuning/jobs/{claim.job_id}/stream"
    for limit, status in (("PER_KEY", 429), ("", 503)):
        with variables(**{f"CELORA_API_STREAMS{limit and '_' + limit}": "1"}):
            said = listen_to(client, claim.job_id)
            next(said)
            refused = client.get(path)
            assert (refused.status_code, refused.headers["retry-after"]) == (status, "30")
            assert refused.json()["error"]["code"] == "too_many_streams"
            said.close()  # type: ignore[attr-defined]  # a generator

            def is_open() -> bool:
                with client.stream("GET", path) as answer:
                    return answer.status_code == 200

            until(is_open)


def test_others_may_not_watch(server: ApiServer, client: httpx.Client, claim: Claim) -> None:
    headers = {"authorization": f"Bearer {key_for('strangers')}"}
    answer = client.get(f"/fine_tuning/jobs/{claim.job_id}/stream", headers=headers)
    assert answer.status_code == 404
    assert server.v1 in str(answer.url)


def _place_of(job_id: str) -> Place:
    """Behind all that there is."""
    until(lambda: len(_news(job_id, Place()).events) >= _count_events(job_id))
    return _news(job_id, Place()).after


def _count_events(job_id: str) -> int:
    with transaction() as session:
        return len(events_of(session, job_id))


def _news(job_id: str, place: Place) -> News:
    with transaction() as session:
        return read_news(session, {job_id: place})[job_id]


def _listeners() -> int:
    """Connections to this database that LISTEN for jobs."""
    with transaction() as session:
        return int(
            session.scalars(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND query = 'LISTEN \"celora_job\"'"
                )
            ).one()
        )
