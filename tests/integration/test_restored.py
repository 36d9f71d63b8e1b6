"""After a restore: what the database forgot is given to nobody else, and nothing is promised that
is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from celora.doctor import Verdict, services
from celora.restored import after_restore
from models import secrets, store
from models.errors import NotFoundError, StateError
from models.queries import products, restored
from models.queries.attempts import Claim
from models.queries.deliveries import deliveries
from models.queries.following import Place, known_here, read_news
from models.queries.history import events_of
from models.queries.hub_tokens import set_hub_token
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.environment import variables

FAR = 2**40  # a transaction that is yet to come on any server


@pytest.fixture(autouse=True)
def _place(database: str, tmp_path: Path) -> object:  # noqa: ARG001 (after the database)
    records.clear()
    with variables(CELORA_ARTIFACTS=str(tmp_path / "store")):
        yield


def running() -> Claim:
    """On a GPU, with prepared data that is where the records say."""
    claim = records.running()
    url = store.prepared_url("1")
    store.local_path(url).mkdir(parents=True)
    with transaction() as session:
        session.execute(text("UPDATE jobs SET prepared_url = :url"), {"url": url})
    return claim


def save(job_id: str, fence: int, step: int) -> Path:
    url = store.checkpoint_url(job_id, fence, step)
    folder = store.local_path(url)
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"12345")
    with transaction() as session:
        products.register_checkpoint(
            session, job_id, fence, step=step, url=url, size_bytes=5, trained_tokens=0, metrics={}
        )
    return folder


def kinds(job_id: str) -> list[str]:
    with transaction() as session:
        return [event.kind for event in events_of(session, job_id)]


def test_a_job_that_ran_goes_on_above_all_fences() -> None:
    claim = running()
    save(claim.job_id, claim.fence, 10)
    torn = save(claim.job_id, claim.fence, 20)
    (torn / "state").unlink()
    # Of attempts that the database has forgotten; and of a job that it has.
    (torn.parents[2] / "1007" / "adapter").mkdir(parents=True)
    (torn.parents[3] / "ftjob-forgotten" / "2").mkdir(parents=True)
    with transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET claimed_at = now() - interval '3 days',"
                " lease_until = now() - interval '2 days' WHERE gpu_id IS NOT NULL"
            )
        )
    planned = after_restore(dry_run=True)
    assert records.job(claim.job_id).state == "running"
    done = after_restore()
    assert done.record() == planned.record()
    assert done.ended_jobs == [claim.job_id]
    assert done.unknown_jobs == ["ftjob-forgotten"]
    job = records.job(claim.job_id)
    assert (job.state, job.stage, job.losses, job.fence) == ("queued", "train", 0, 2000)
    assert job.gpu_seconds == pytest.approx(86_400, rel=0.01)  # not until today
    assert kinds(claim.job_id)[-2:] == ["lost", "checkpoint_missing"]
    with transaction() as session:
        assert [one.step for one in products.checkpoints_of(session, claim.job_id)] == [10]
    assert not records.place()  # its GPU has not been seen
    again = after_restore()
    assert (again.ended_jobs, again.raised_fences, again.missing) == ([], 0, {})


def test_what_is_gone_is_made_anew_or_said() -> None:
    waiting = records.queued()  # its prepared data lies nowhere
    with pytest.raises(NotFoundError, match="none is in the store"):
        after_restore()
    done = after_restore(without_files=True)
    assert done.prepared_anew == 1
    job = records.job(waiting)
    assert (job.state, job.stage, job.prepared_url) == ("pending", "preprocess", None)


def test_an_adapter_that_is_gone() -> None:
    claim = running()
    save(claim.job_id, claim.fence, 10)
    url = store.join(store.attempt_url(claim.job_id, claim.fence), "adapter")
    with transaction() as session:
        products.register_artifact(
            session, claim.job_id, claim.fence, kind="adapter", url=url, size_bytes=5
        )
        session.execute(text("UPDATE jobs SET stage = 'evaluate'"))
    after_restore()
    job = records.job(claim.job_id)
    assert (job.state, job.stage, job.adapter_url) == ("queued", "train", None)
    assert "adapter_missing" in kinds(claim.job_id)


def test_events_of_another_server() -> None:
    job_id = records.submit()
    with transaction() as session:
        session.execute(text("UPDATE events SET written_by = :far"), {"far": FAR})
        last = events_of(session, job_id)[-1].id
        place = known_here(session, Place(event=(FAR, last)))
    assert after_restore().events_renumbered
    records.place_preparation()
    with transaction() as session:
        news = read_news(session, {job_id: place})[job_id]
        whole = read_news(session, {job_id: Place()})[job_id]
        assert [event.kind for event in news.events] == ["placed"]
        assert news.events[0].id > 1_000_000  # no id of a forgotten event
        assert [event.kind for event in whole.events] == ["submitted", "placed"]
        assert not restored.has_foreign_order(session)


def test_messages_that_may_have_been_sent() -> None:
    records.submit()
    with transaction() as session:
        for number, kind in enumerate(("webhook", "apprise")):
            session.execute(_TARGET, {"kind": kind})
            session.execute(_DELIVERY, {"message": f"msg-{number}", "kind": kind})
    done = after_restore()
    assert (done.sent_again, done.held) == (1, 1)
    with transaction() as session:
        log = {one.target: one for one in deliveries(session)}
    assert log["webhook"].state == "waiting"
    assert log["apprise"].state == "failed"
    assert "restored" in (log["apprise"].cause or "")


_TARGET = text("""
    INSERT INTO notification_targets
        (tenant_id, name, kind, shown, events, wait_seconds, budget_percent, created_by)
    SELECT id, :kind, :kind, 'somewhere', '{}', 0, 0, 'ada' FROM tenants
""")
_DELIVERY = text("""
    INSERT INTO deliveries (message_id, target_id, notice, data)
    SELECT :message, id, 'started', '{}' FROM notification_targets WHERE name = :kind
""")


def test_uploads_that_are_gone_are_listed() -> None:
    records.submit()
    with transaction() as session:
        for name in ("here", "gone"):
            session.execute(_FILE, {"name": f"file-{name}", "url": store.file_url(1, name)})
    here = store.local_path(store.file_url(1, "here"))
    here.mkdir(parents=True)
    (here / "data.jsonl").write_bytes(b"12345")
    assert [one.id for one in after_restore().missing["uploads"]] == ["file-gone"]


_FILE = text("""
    INSERT INTO files (id, tenant_id, user_name, purpose, filename, size_bytes, digest, url)
    SELECT :name, id, 'ada', 'fine-tune', 'rows.jsonl', 5, '', :url FROM tenants
""")


def test_not_while_others_are_connected() -> None:
    with records.locked("SELECT 1"), pytest.raises(StateError, match="connected"):
        after_restore()


def test_the_doctor_tries_the_key() -> None:
    records.submit("team")
    key, other = secrets.new_key(), secrets.new_key()
    with variables(CELORA_SECRET_KEY=key), transaction() as session:
        set_hub_token(session, "team", secrets.seal("hf_secret"))
    for given, verdict in (
        (f"{other},{key}", Verdict.OK),
        (other, Verdict.FAIL),
        ("", Verdict.FAIL),
    ):
        with variables(CELORA_SECRET_KEY=given):
            (check,) = services.secret_key()
            assert check.verdict is verdict
    assert "1 hub tokens" in check.said


def test_a_loss_that_is_nobodys_fault_fails_no_job() -> None:
    job_id = records.submit()
    for _ in range(5):
        records.place_preparation()
        claim = records.claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
        job = records.end(job_id, claim.fence, Outcome.LOST, reason="no key", counted=False)
        assert (job.state, job.losses) == ("pending", 0)
