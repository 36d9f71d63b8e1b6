"""Messages reach receivers that behave, and outlast those that do not."""

from __future__ import annotations

from datetime import timedelta

import openai
import pytest
from sqlalchemy import text
from standardwebhooks import Webhook

import celora
from models.notices import Kind
from models.queries import deliveries
from models.session import transaction
from models.states import Outcome
from tests import records
from tests.delivering import delivering, ended, job_fails, until
from tests.environment import variables
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("_empty")


@pytest.fixture
def _empty(notifying: None) -> None:  # noqa: ARG001 (first the settings)
    records.clear()


def test_a_webhook_is_signed_and_says_what_happened(receiver: Receiver) -> None:
    made = celora.add_target("ops", webhook=receiver.url + "?a=1", on=["failed"])
    job_id = job_fails()
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts, seen.status) == ("delivered", 1, 200)
    (got,) = receiver.got
    assert got.path == "/hook?a=1"
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    event = Webhook(made.secret or "").verify(got.body, got.headers)
    assert event["id"] == got.headers["webhook-id"]
    assert (event["object"], event["version"], event["type"]) == ("event", 1, "job.failed")
    assert event["next"] == f"celora logs {job_id}"
    assert "the loss became NaN at step 3" in event["message"]
    assert event["data"]["id"] == job_id


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome.COMPLETED, "fine_tuning.job.succeeded"),
        (Outcome.FAILED, "fine_tuning.job.failed"),
        (Outcome.CANCELLED, "fine_tuning.job.cancelled"),
    ],
)
def test_openais_client_verifies_and_parses_its_events(
    receiver: Receiver, outcome: Outcome, kind: str
) -> None:
    made = celora.add_target("client", webhook=receiver.url, format="openai")
    claim = records.running(evaluate=False)
    records.end(claim.job_id, claim.fence, outcome)
    with delivering():
        ended()
    (got,) = receiver.got
    with openai.OpenAI(api_key="none", webhook_secret=made.secret) as client:
        event = client.webhooks.unwrap(got.body, got.headers)
        assert event.type == kind
        assert getattr(event.data, "id", None) == claim.job_id
        assert type(event).__name__ == f"FineTuningJob{kind.rpartition('.')[2].title()}WebhookEvent"
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(got.body.replace(b"ftjob", b"other"), got.headers)


@pytest.mark.parametrize(
    ("how", "status", "cause"),
    [
        ("error", 500, "it answered 500"),
        ("redirect", 307, "it redirects elsewhere, which is not followed"),
        ("close", None, "the connection was closed without an answer"),
    ],
)
def test_a_receiver_that_does_not_take_it_is_tried_again_then_given_up(
    receiver: Receiver, how: str, status: int | None, cause: str
) -> None:
    receiver.behave(how)
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts, seen.status, seen.cause) == ("failed", 3, status, cause)
    assert len(receiver.got) == 3
    assert len({one.headers["webhook-id"] for one in receiver.got}) == 1
    assert len({one.body for one in receiver.got}) == 1
    assert receiver.at("/elsewhere") == []
    receiver.behave("ok")
    celora.retry_delivery(seen.id)
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts, seen.cause) == ("delivered", 1, None)


def test_one_is_put_forward_while_its_target_gets_another(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    job_fails()
    first, second = (one.id for one in reversed(celora.deliveries()))
    with transaction() as session:
        later = text("UPDATE deliveries SET next_at = now() + interval '1h' WHERE id = :id")
        session.execute(later, {"id": second})
        (taken,) = deliveries.claim(session, Kind.WEBHOOK, 9, 60)
    assert taken.id == first
    celora.retry_delivery(first)  # which is just being tried: no second time beside it
    celora.retry_delivery(second)
    with transaction() as session:
        assert deliveries.claim(session, Kind.WEBHOOK, 9, 60) == []
        deliveries.finish(session, taken, status=500, cause="it answered 500", retry_after=60)
        assert [one.id for one in deliveries.claim(session, Kind.WEBHOOK, 9, 60)] == [second]


def test_one_that_recovers_gets_it_with_the_same_id(receiver: Receiver) -> None:
    receiver.first = ["error", "close"]
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts) == ("delivered", 3)
    assert len({one.headers["webhook-id"] for one in receiver.got}) == 1


def test_one_that_is_gone_is_not_tried_again(receiver: Receiver) -> None:
    receiver.behave("gone")
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts, seen.status) == ("failed", 1, 410)


def test_one_that_asks_for_time_gets_it(receiver: Receiver) -> None:
    receiver.behave("busy")
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with delivering():
        until(lambda: celora.deliveries()[0].status == 503, "the first try")
    (seen,) = celora.deliveries()
    assert seen.next_try_at is not None
    assert seen.tried_at is not None
    assert seen.next_try_at - seen.tried_at > timedelta(minutes=29)


def test_an_answer_without_an_end_is_not_read(receiver: Receiver) -> None:
    receiver.behave("flood")
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.status) == ("delivered", 200)


def test_a_receiver_that_never_answers_holds_up_no_other(receiver: Receiver) -> None:
    receiver.behave("silent", "/silent")
    celora.add_target("silent", webhook=receiver.url.replace("/hook", "/silent"))
    celora.add_target("ops", webhook=receiver.url)
    first = job_fails()
    with delivering():
        until(lambda: len(receiver.at("/silent")) == 1, "the silent one has it")
        second = job_fails()
        ended(2)
        assert [one.state for one in celora.deliveries(target="ops")] == ["delivered"] * 2
        waiting = celora.deliveries(target="silent")
        assert [one.job for one in waiting] == [second, first]
        assert [one.attempts for one in waiting] == [0, 1]  # one at a time
        receiver.released.set()
        until(lambda: len(receiver.at("/silent")) >= 2, "the next one goes to the silent one")


def test_a_time_out_is_a_cause(receiver: Receiver) -> None:
    receiver.behave("silent")
    with variables(CELORA_NOTIFY_TIMEOUT_SECONDS="0.2", CELORA_NOTIFY_ATTEMPTS="1"):
        celora.add_target("ops", webhook=receiver.url)
        job_fails()
        with delivering():
            (seen,) = ended()
    assert (seen.state, seen.cause) == ("failed", "no answer within 0.2 s")


def test_several_senders_never_send_to_one_target_at_once(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    for _ in range(20):
        celora.send_test("ops")
    with delivering(senders=3):
        ended(20)
    assert len({one.headers["webhook-id"] for one in receiver.got}) == 20
    assert len(receiver.got) == 20
    assert receiver.most_open == 1


def test_a_sender_that_dies_between_claim_and_sending_loses_nothing(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with transaction() as session:
        (lost,) = deliveries.claim(session, Kind.WEBHOOK, 10, lease_seconds=600)
    with transaction() as session:
        assert deliveries.claim(session, Kind.WEBHOOK, 10, lease_seconds=600) == []
        session.execute(text("UPDATE notification_targets SET busy_until = clock_timestamp()"))
    with delivering():
        (seen,) = ended()
    assert (seen.state, seen.attempts) == ("delivered", 2)
    assert receiver.got[0].headers["webhook-id"] == lost.message_id
    # What the dead one might still write comes too late.
    with transaction() as session:
        deliveries.finish(session, lost, status=None, cause="nobody knows")
    assert celora.deliveries()[0].state == "delivered"


def test_what_a_later_version_tells_of_waits_for_its_dispatcher(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    job_fails()
    with transaction() as session:
        session.execute(text("UPDATE deliveries SET notice = 'told_later'"))
    with transaction() as session:
        assert deliveries.claim(session, Kind.WEBHOOK, 10, lease_seconds=600) == []
        session.execute(text("UPDATE deliveries SET notice = 'failed'"))
    with transaction() as session:
        assert len(deliveries.claim(session, Kind.WEBHOOK, 10, lease_seconds=600)) == 1


def test_what_waits_for_a_removed_target_is_dropped_and_the_log_stays() -> None:
    celora.add_target("ops", webhook="https://hooks.example.com/x")
    waiting = celora.send_test("ops")
    assert celora.remove_target("ops") == 1
    (seen,) = celora.deliveries()
    assert (seen.id, seen.target, seen.state) == (waiting, "ops", "dropped")
    celora.add_target("ops", webhook="https://hooks.example.com/x")  # the name is free again


def test_the_log_is_kept_for_so_long(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    old, new, waiting = (celora.send_test("ops") for _ in range(3))
    with transaction() as session:
        session.execute(
            text(
                "UPDATE deliveries SET state = 'delivered', ended_at = now() -"
                " CASE WHEN id = :old THEN interval '31 d' ELSE interval '29 d' END"
                " WHERE id <> :waiting"
            ),
            {"old": old, "waiting": waiting},
        )
        assert deliveries.prune(session, days=30) == 1
    assert [one.id for one in celora.deliveries()] == [waiting, new]
