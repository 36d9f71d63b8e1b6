"""What Celora stands on: database and migrations, broker, workers, artifact store."""

from __future__ import annotations

import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from celora.doctor.check import Check, Verdict
from models import store
from models.errors import CeloraError, UnavailableError
from models.settings import settings
from tasks.broker import FOLDER_SCHEME, tls_options

_OLDEST_POSTGRES = 15
_PROBE = "celora doctor\n"
_UP = "start `celora up`, or set CELORA_DATABASE_URL to your own server"


def database() -> Iterator[Check]:
    from sqlalchemy import make_url

    from models.queries.clock import server_version
    from models.session import transaction

    embedded = not settings().database_url
    place = (
        f"embedded, {settings().embedded_postgres}"
        if embedded
        else make_url(settings().database_url).render_as_string(hide_password=True)
    )
    try:
        with transaction() as session:
            version = server_version(session)
    except UnavailableError as error:
        said = f"does not answer ({place})" if embedded else f"{error.what} ({place})"
        # The embedded one is down whenever `celora up` is: nothing is broken.
        verdict = Verdict.WARN if embedded else Verdict.FAIL
        yield Check("database", verdict, said, _UP if embedded else "check CELORA_DATABASE_URL")
        return
    major = version // 10_000
    said = f"PostgreSQL {major}.{version % 10_000} ({place})"
    if major < _OLDEST_POSTGRES:
        yield Check("database", Verdict.FAIL, said, f"use PostgreSQL {_OLDEST_POSTGRES} or newer")
        return
    yield Check("database", Verdict.OK, said)
    yield _migrations()


def _migrations() -> Check:
    import migrations

    found, needed = migrations.current(settings().resolved_database_url), migrations.head()
    if found == needed:
        return Check("migrations", Verdict.OK, f"at {found}")
    return Check(
        "migrations",
        Verdict.FAIL,
        f"the database is at {found or 'nothing'}, this version needs {needed}",
        "celora db upgrade",
    )


def secret_key() -> Iterator[Check]:
    from models.queries.sealed import try_keys
    from models.session import transaction

    try:
        with transaction() as session:
            found = try_keys(session)
    except CeloraError:
        return  # the database's own check tells
    if found.closed:
        closed = ", ".join(f"{count} {kind}" for kind, count in found.closed.items())
        yield Check(
            "secret key",
            Verdict.FAIL,
            f"of {found.count} stored secrets these do not open: {closed} ({found.why})",
            "set CELORA_SECRET_KEY as every other process of Celora has it, after a comma also the"
            " key before it; where it is lost, docs/operations.md says what to do",
        )
    elif found.count:
        yield Check("secret key", Verdict.OK, f"opens all {found.count} stored secrets")
    else:
        yield Check("secret key", Verdict.OK, "no secret is stored")


def broker() -> Iterator[Check]:
    from kombu import Connection

    url = settings().resolved_broker_url
    if url.startswith(FOLDER_SCHEME):
        folder = Path(url.removeprefix(FOLDER_SCHEME))
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield Check(
                "broker", Verdict.FAIL, f"{folder}: {error.strerror}", "set CELORA_BROKER_URL"
            )
        else:
            yield Check("broker", Verdict.OK, f"folder {folder}")
        return
    try:
        with Connection(url, connect_timeout=5, ssl=tls_options(url)) as connection:
            shown = connection.as_uri()  # without the password
            connection.ensure_connection(max_retries=1, timeout=5)
    except Exception as error:  # noqa: BLE001 (each transport has errors of its own)
        yield Check(
            "broker",
            Verdict.FAIL,
            f"cannot be reached: {type(error).__name__}: {error}",
            "check CELORA_BROKER_URL and that the broker runs; jobs are accepted meanwhile",
        )
    else:
        yield Check("broker", Verdict.OK, shown)


def workers() -> Iterator[Check]:
    from models.queries.gpus import list_gpus
    from models.session import transaction

    try:
        with transaction() as session:
            states = Counter(gpu.state for gpu in list_gpus(session))
    except CeloraError:
        return  # the database's own check tells
    alive = states.total() - states["stale"]
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    if alive:
        yield Check("gpu workers", Verdict.OK, said)
    else:
        yield Check(
            "gpu workers",
            Verdict.WARN,
            f"none reports ({said}): jobs wait",
            "`celora up` on one machine, `celora gpu-worker` on each of several",
        )


def artifact_store() -> Iterator[Check]:
    url = settings().artifacts_url
    probe = store.join(url, f"probe-{secrets.token_hex(8)}")
    done = "written"
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "probe").write_text(_PROBE)
            store.upload(Path(folder), probe)
        done = "read"
        there = store.exists(probe) and store.read(probe, "probe") == _PROBE.encode()
        done = "cleaned up"  # which takes the right to list and to delete
        store.remove(probe)
    except CeloraError as error:
        yield Check(
            "artifacts", Verdict.FAIL, f"{url} cannot be {done}: {error.what}", error.remedy
        )
        return
    if there:
        yield Check("artifacts", Verdict.OK, f"{url} (wrote, read and deleted a probe)")
    else:
        yield Check(
            "artifacts",
            Verdict.FAIL,
            f"{url}: what was written is not there",
            "use a store that is consistent after a write",
        )
