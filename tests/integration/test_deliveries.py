"""Messages reach receivers that behave, and outlast those that do not."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import text
from standardwebhooks import Webhook

import celora
from models import secrets
from models.errors import InputError, SetupError
from models.notices import Kind
from models.queries import deliveries
from models.queries.deliveries import DeliveryView
from models.queries.sealed import reseal
from models.session import transaction
from models.states import Outcome
from tasks.delivery import webhook
from tasks.dispatcher import deliver
from tests import records
from tests.environment import variables
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("_empty")

SETTINGS = {
    "CELORA_NOTIFY_RETRY_SECONDS": "0.02",
    "CELORA_NOTIFY_ATTEMPTS": "3",
    "CELORA_NOTIFY_TIMEOUT_SECONDS": "600",
    "CELORA_NOTIFY_PRIVATE_HOSTS": "127.0.0.0/8",
    "CELORA_NOTIFY_ALLOW_HTTP": "true",
    "CELORA_NOTIFY_SERVICES": "json",
}


@pytest.fixture(scope="module")
def _settings(database: str) -> Iterator[None]:  # noqa: ARG001 (after the database)
    with (
        variables(CELORA_SECRET_KEY=secrets.new_key(), **SETTINGS),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(deliver, "LOOK_SECONDS", 0.02)  # as the pauses between tries
        yield


@pytest.fixture
def _empty(_settings: None) -> None:
    records.clear()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@contextmanager
def delivering(senders: int = 1) -> Iterator[None]:
    """Deliver as so many dispatchers do."""
    stop = threading.Event()
    threads = [threading.Thread(target=deliver.run, args=(stop,)) for _ in range(senders)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}\n{celora.deliveries()}"
        time.sleep(0.02)


def ended(count: int = 1) -> list[DeliveryView]:
    """Wait until so many messages are over; they come oldest first."""

    def over() -> list[DeliveryView]:
        return [one for one in celora.deliveries() if one.ended_at is not None]

    until(lambda: len(over()) >= count, f"{count} messages are over")
    return over()[::-1]


def job_fails() -> str:
    claim = records.running(name="my job")
    error = {"code": "non_finite_loss", "message": "the loss became NaN at step 3"}
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error=error)
    return claim.job_id


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


def test_a_certificate_is_checked_for_the_name_that_was_asked_for(tmp_path: Path) -> None:
    context = certificate(tmp_path, for_name="localhost")
    with Receiver(tls=context) as receiver:
        address = f"https://{{}}:{receiver.port}/hook"
        with variables(
            SSL_CERT_FILE=str(tmp_path / "certificate.pem"),
            CELORA_NOTIFY_PRIVATE_HOSTS="localhost, 127.0.0.1",
            CELORA_NOTIFY_ATTEMPTS="1",
        ):
            webhook._tls.cache_clear()
            celora.add_target("named", webhook=address.format("localhost"))
            celora.add_target("other", webhook=address.format("127.0.0.1"))
            for name in ("named", "other"):
                celora.send_test(name)
            with delivering():
                seen = {one.target: (one.state, one.cause) for one in ended(2)}
        webhook._tls.cache_clear()
    assert seen == {
        "named": ("delivered", None),
        "other": ("failed", "its certificate is not valid"),
    }


def certificate(folder: Path, *, for_name: str) -> ssl.SSLContext:
    """A server's context with a certificate of its own, which lies in certificate.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(for_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    kept, both = folder / "certificate.pem", folder / "server.pem"
    kept.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    both.write_bytes(private + kept.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


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


def test_a_service_of_apprise_is_told_in_words(receiver: Receiver) -> None:
    celora.add_target("chat", apprise=f"json://127.0.0.1:{receiver.port}/team", on=["failed"])
    job_id = job_fails()
    with delivering():
        (seen,) = ended()
    assert seen.state == "delivered"
    said = json.loads(receiver.got[0].body)
    assert said["title"] == f"Celora: my job ({job_id}) failed"
    assert said["message"].endswith(f"Next: celora logs {job_id}")
    assert said["type"] == "failure"


@pytest.mark.slow
def test_a_service_that_refuses_is_tried_again_with_its_status_on_record(
    receiver: Receiver,
) -> None:
    receiver.behave("error")
    with variables(CELORA_NOTIFY_ATTEMPTS="1"):
        celora.add_target("chat", apprise=f"json://127.0.0.1:{receiver.port}/team")
        job_fails()
        with delivering():
            (seen,) = ended()
    assert (seen.state, seen.status, seen.cause) == ("failed", 500, "JSON answered 500")


def test_private_addresses_are_not_reached_unless_a_setting_names_them(receiver: Receiver) -> None:
    celora.add_target("ops", webhook=receiver.url)
    celora.add_target("name", webhook=receiver.url.replace("127.0.0.1", "localhost"))
    celora.add_target("chat", apprise=f"json://localhost:{receiver.port}/team?redirect=yes")
    with variables(CELORA_NOTIFY_PRIVATE_HOSTS="", CELORA_NOTIFY_ATTEMPTS="1"):
        for name in ("ops", "name", "chat"):
            celora.send_test(name)
        with delivering():
            causes = {one.target: one.cause for one in ended(3)}
        with pytest.raises(InputError, match="private"):
            celora.add_target("again", webhook=receiver.url)
    assert receiver.got == []
    private = "it leads to a private address that CELORA_NOTIFY_PRIVATE_HOSTS does not name"
    assert causes == {"ops": "127.0.0.1 is a private address", "name": private, "chat": private}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("syslog://", "service syslog:// is not among"),
        ("nonsense", "does not understand"),
    ],
)
def test_a_url_that_is_not_allowed_is_refused_without_being_repeated(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        celora.add_target("chat", apprise=url)


def test_without_a_key_no_target_is_made() -> None:
    with (
        variables(CELORA_SECRET_KEY=""),
        pytest.raises(SetupError, match="celora db new-key"),
    ):
        celora.add_target("ops", webhook="https://hooks.example.com/x")


def test_no_secret_is_in_any_row_or_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hidden = "T0KEN-in-the-path"
    address = f"http://127.0.0.1:{receiver.port}/{hidden}"
    made = celora.add_target("ops", webhook=address)
    celora.add_target("chat", apprise=f"json://user:{hidden}@127.0.0.1:{receiver.port}/{hidden}")
    receiver.behave("error")
    job_fails()
    with delivering():
        ended(2)
    looked_for = (hidden, (made.secret or "").removeprefix("whsec_"))
    everything = _all_rows() + caplog.text
    assert "given up after 3 tries" in everything
    assert not [one for one in looked_for if one in everything]
    celora.remove_target("ops")
    assert [one.name for one in celora.targets()] == ["chat"]


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


def _all_rows() -> str:
    """Every row of every table, as text."""
    with transaction() as session:
        names = session.scalars(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        ).all()
        return "\n".join(
            str(row)
            for name in names
            for row in session.execute(text(f'SELECT * FROM "{name}"'))  # noqa: S608 (a table's name)
        )


def test_a_key_is_replaced_without_losing_a_target(receiver: Receiver) -> None:
    old, new = secrets.new_key(), secrets.new_key()
    with variables(CELORA_SECRET_KEY=old):
        made = celora.add_target("ops", webhook=receiver.url)
    with variables(CELORA_SECRET_KEY=f"{new},{old}"), transaction() as session:
        assert reseal(session) == 2
    with variables(CELORA_SECRET_KEY=new):
        celora.send_test("ops")
        with delivering():
            ended()
    (got,) = receiver.got
    assert Webhook(made.secret or "").verify(got.body, got.headers)["type"] == "test"
