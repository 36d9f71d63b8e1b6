"""Uploaded files below the HTTP API: stored, counted, kept while they are needed, and swept."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from celora.api.caller import Caller
from celora.api.errors import ApiError
from celora.api.file_store import (
    content_of,
    delete_file,
    keep_file,
    own_file,
    resolve_training_file,
)
from models import store
from models.errors import NotFoundError, StateError
from models.queries.hub_tokens import tenant_id_of
from models.queries.tenants import change_tenant
from models.session import transaction
from models.tables import StoredFile
from tasks.dispatcher import sweep as sweeping
from tests import records, stored

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 3


@pytest.fixture(params=["local", "memory"], autouse=True)
def artifacts(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[str]:  # noqa: ARG001 (it has to be there)
    with stored.artifacts(request.param, tmp_path) as url:
        records.clear()
        yield url


@pytest.fixture
def caller() -> Caller:
    with transaction() as session:
        change_tenant(session, "team", {})
        tenant_id = tenant_id_of(session, "team")
    scopes = frozenset({"read", "submit"})
    return Caller(tenant="team", user="ann", key_id="key_1", scopes=scopes, tenant_id=tenant_id)


def keep(caller: Caller, *, lives_seconds: int | None = None) -> StoredFile:
    content = io.BytesIO(ROWS)
    return keep_file(
        caller.tenant_id,
        "ann",
        content,
        filename="a.jsonl",
        purpose="fine-tune",
        lives_seconds=lives_seconds,
    )


def used() -> int:
    ((total,),) = stored.sql("SELECT coalesce(sum(disk_used_bytes), 0)::int FROM users")
    return int(total)


def expire(file: StoredFile) -> None:
    stored.sql("UPDATE files SET expires_at = now() WHERE id = :id", id=file.id)


def sweep() -> dict[str, int]:
    swept = sweeping.sweep()
    assert swept is not None
    assert swept.problems == []
    return dict(swept.counts)


def test_a_file_counts_until_it_is_deleted(caller: Caller) -> None:
    file = keep(caller)
    assert b"".join(content_of(file)) == ROWS
    assert used() == len(ROWS)
    assert sweep() == {}
    assert used() == len(ROWS), "the sweep counts as the upload did"
    delete_file(caller, file.id)
    assert used() == 0
    assert not store.exists(file.url)
    assert sweep() == {}


def test_over_the_quota_nothing_is_taken(caller: Caller) -> None:
    with transaction() as session:
        change_tenant(session, "team", {"disk_bytes": 2 * len(ROWS) - 1})
    keep(caller)
    with pytest.raises(ApiError) as caught:
        keep(caller)
    assert (caught.value.status_code, caught.value.code) == (413, "disk_quota_exceeded")
    assert used() == len(ROWS)


def test_a_file_that_a_job_has_to_read_yet_stays(caller: Caller) -> None:
    file = keep(caller, lives_seconds=3600)
    with transaction() as session:
        dataset = resolve_training_file(session, caller, file.id)
    job_id = records.submit("team", dataset=dataset)
    with pytest.raises(StateError, match=job_id):
        delete_file(caller, file.id)
    expire(file)
    assert sweep() == {}
    stored.sql("UPDATE files SET expires_at = NULL WHERE id = :id", id=file.id)
    stored.sql("UPDATE jobs SET state = 'paused' WHERE id = :id", id=job_id)
    with pytest.raises(StateError, match=job_id):
        delete_file(caller, file.id)
    expire(file)
    assert sweep() == {}, "once it is resumed it reads the file"
    stored.sql("UPDATE jobs SET state = 'queued', stage = 'train' WHERE id = :id", id=job_id)
    planned = sweeping.preview()
    assert (planned.counts["uploads"], planned.size_bytes["uploads"]) == (1, len(ROWS))
    assert sweep() == {"uploads": 1}
    assert used() == 0


def test_nobody_sees_a_file_whose_end_has_come(caller: Caller) -> None:
    file = keep(caller, lives_seconds=3600)
    expire(file)
    with transaction() as session, pytest.raises(NotFoundError):
        own_file(session, caller, file.id)
    with transaction() as session, pytest.raises(ApiError):
        resolve_training_file(session, caller, file.id)


def test_another_tenants_file_and_a_result_train_nothing(caller: Caller) -> None:
    file = keep(caller)
    other = Caller(
        tenant="x", user="x", key_id="x", scopes=frozenset(), tenant_id=caller.tenant_id + 1
    )
    with transaction() as session, pytest.raises(ApiError) as caught:
        resolve_training_file(session, other, file.id)
    assert (caught.value.status_code, caught.value.param) == (400, "training_file")
    stored.sql("UPDATE files SET purpose = 'fine-tune-results' WHERE id = :id", id=file.id)
    with transaction() as session, pytest.raises(ApiError, match="fine-tune-results"):
        resolve_training_file(session, caller, file.id)


def test_what_belongs_to_no_file_is_swept(caller: Caller) -> None:
    kept, lost = keep(caller), keep(caller)
    stored.sql("UPDATE files SET deleted_at = now() WHERE id = :id", id=lost.id)
    stored.put(f"{store.files_url(caller.tenant_id)}/file-cut.incoming")
    assert sweep() == {}
    stored.age_store(2)
    assert sweep() == {"orphans": 2}
    assert b"".join(content_of(kept)) == ROWS
