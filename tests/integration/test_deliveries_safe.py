"""What notifications keep to themselves, where they do not go, and services of Apprise."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from models.queries.sealed import reseal
from models.session import transaction
from tasks.delivery import webhook
from tests import records
from tests.delivering import delivering, ended, job_fails
from tests.environment import variables
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("_empty")


@pytest.fixture
def _empty(notifying: None) -> None:  # noqa: ARG001 (first the settings)
    records.clear()


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
        pytest.param("nonsense", "does not understand", marks=pytest.mark.slow),
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
    with variables(CELORA_NOTIFY_ATTEMPTS="1"), delivering():
        ended(2)
    looked_for = (hidden, (made.secret or "").removeprefix("whsec_"))
    everything = _all_rows() + caplog.text
    assert "given up after 1 tries" in everything
    assert not [one for one in looked_for if one in everything]
    celora.remove_target("ops")
    assert [one.name for one in celora.targets()] == ["chat"]


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
