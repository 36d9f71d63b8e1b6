"""Uploaded files on record: each is seen by its own tenant alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, func, or_, select, text, tuple_, update
from sqlalchemy.orm import Session

from models.queries.lanes import user_id_of
from models.queries.retention import Candidate, Gone, Kind
from models.queries.retention_rules import TenantRules
from models.tables import StoredFile, User


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file that lies in the store and is not on record yet."""

    id: str
    tenant_id: int
    user: str
    purpose: str
    filename: str
    size_bytes: int
    line_count: int
    digest: str
    url: str
    lives_seconds: int | None = None  # none: until it is deleted


def insert_file(session: Session, new: NewFile) -> StoredFile:
    """Put a file on record; it counts against its user's and tenant's quota at once."""
    user_id = user_id_of(session, new.tenant_id, new.user)
    lives = None if new.lives_seconds is None else timedelta(seconds=new.lives_seconds)
    file = StoredFile(
        id=new.id,
        tenant_id=new.tenant_id,
        user_name=new.user,
        purpose=new.purpose,
        filename=new.filename,
        size_bytes=new.size_bytes,
        line_count=new.line_count,
        digest=new.digest,
        url=new.url,
        expires_at=None if lives is None else func.now() + lives,
    )
    session.add(file)
    session.flush()
    session.refresh(file)
    _count(session, User.id == user_id, new.size_bytes)
    return file


def find_file(session: Session, tenant_id: int, file_id: str) -> StoredFile | None:
    """One of the tenant's own that stands: no deleted one, no expired one, no other's."""
    return session.scalar(_own(tenant_id, file_id).where(*_STANDS))


def find_place(session: Session, tenant_id: int, file_id: str) -> StoredFile | None:
    """One of the tenant's own to list on from, deleted ones among them: who deletes what a page
    has told goes on to the next page all the same."""
    return session.scalar(_own(tenant_id, file_id))


def list_files(
    session: Session,
    tenant_id: int,
    *,
    limit: int,
    newest_first: bool,
    after: StoredFile | None = None,
    purpose: str | None = None,
) -> Sequence[StoredFile]:
    """The tenant's files, by (created_at, id): the order stays while others are added."""
    found = select(StoredFile).where(StoredFile.tenant_id == tenant_id, *_STANDS)
    if purpose is not None:
        found = found.where(StoredFile.purpose == purpose)
    if after is not None:
        place, here = tuple_(StoredFile.created_at, StoredFile.id), (after.created_at, after.id)
        found = found.where(place < here if newest_first else place > here)
    columns = (StoredFile.created_at, StoredFile.id)
    order = [column.desc() if newest_first else column.asc() for column in columns]
    return session.scalars(found.order_by(*order).limit(limit)).all()


def mark_file_deleted(session: Session, file: StoredFile) -> bool:
    """It is gone for everybody; its content may be deleted once this is committed.

    False: somebody else did it before.
    """
    gone = (
        update(StoredFile)
        .where(StoredFile.id == file.id, StoredFile.deleted_at.is_(None))
        .values(deleted_at=func.now())
    )
    if session.execute(gone.returning(StoredFile.id)).first() is None:
        return False
    owner = (User.tenant_id == file.tenant_id) & (User.name == file.user_name)
    _count(session, owner, -file.size_bytes)
    return True


def needed_by(session: Session, tenant_id: int, dataset: str) -> str | None:
    """The id of a job that still has to read the data set: one that is not prepared yet, paused or
    not."""
    found: str | None = session.scalar(_NEEDED, {"tenant_id": tenant_id, "dataset": dataset})
    return found


def room_left(session: Session, tenant_id: int, user: str) -> int | None:
    """Bytes until the disk quota of the tenant, or of the user, is reached; none: no quota."""
    left: int | None = session.scalar(_ROOM, {"tenant_id": tenant_id, "user": user})
    return left


def known_files(session: Session) -> set[str]:
    """Ids of all files whose content is to stay in the store."""
    return set(session.scalars(select(StoredFile.id).where(StoredFile.deleted_at.is_(None))))


def find_expired(session: Session, _rules: Sequence[TenantRules]) -> list[Candidate]:
    """Files past their own end which no job has to read any more."""
    return [Candidate(*row) for row in session.execute(_EXPIRED)]


def preview_expired(session: Session) -> tuple[int, int]:
    """How many that are, and their bytes."""
    count, size_bytes = session.execute(_PREVIEW).one()
    return count, size_bytes


def mark_expired(session: Session, found: Sequence[Candidate]) -> list[Gone]:
    # All files before any user's row, as whoever deletes one does: neither waits for the other.
    files = session.scalars(
        select(StoredFile)
        .where(StoredFile.id.in_([one.id for one in found]))
        .order_by(StoredFile.id)
        .with_for_update(key_share=True)
    ).all()
    gone = [file for file in files if mark_file_deleted(session, file)]
    return [Gone("uploads", file.url, file.size_bytes) for file in gone]


EXPIRED_FILES = Kind(find_expired, mark_expired)


def _own(tenant_id: int, file_id: str) -> Select[StoredFile]:
    return select(StoredFile).where(StoredFile.id == file_id, StoredFile.tenant_id == tenant_id)


_STANDS: tuple[ColumnElement[bool], ...] = (
    StoredFile.deleted_at.is_(None),
    or_(StoredFile.expires_at.is_(None), StoredFile.expires_at > func.now()),
)


def _count(session: Session, whose: ColumnElement[bool], size_bytes: int) -> None:
    used = func.greatest(0, User.disk_used_bytes + size_bytes)
    session.execute(update(User).where(whose).values(disk_used_bytes=used))


# Jobs that have not read their data: one that was paused before goes on from there.
_UNREAD = "jobs.state IN ('pending', 'paused') AND jobs.stage = 'preprocess'"

_NEEDED = text(f"""
    SELECT id FROM jobs
    WHERE {_UNREAD} AND tenant_id = :tenant_id
      AND :dataset IN (spec ->> 'dataset', spec ->> 'eval_dataset')
    LIMIT 1
""")  # noqa: S608 (constants)

_ROOM = text("""
    SELECT CAST(least(
        tenants.disk_bytes - (
            SELECT coalesce(sum(disk_used_bytes), 0) FROM users WHERE tenant_id = tenants.id
        ),
        coalesce(users.disk_bytes, tenants.user_disk_bytes) - coalesce(users.disk_used_bytes, 0)
    ) AS bigint)
    FROM tenants LEFT JOIN users ON users.tenant_id = tenants.id AND users.name = :user
    WHERE tenants.id = :tenant_id
""")

# The dataset of a job names the file inside the folder. Each job is looked at once, however many
# files there are.
_PAST = f"""
    WITH readers AS MATERIALIZED (
        SELECT tenant_id, unnest(ARRAY[spec ->> 'dataset', spec ->> 'eval_dataset']) AS reads
        FROM jobs WHERE {_UNREAD}
    ), past AS (
        SELECT id, size_bytes FROM files
        WHERE deleted_at IS NULL AND expires_at <= statement_timestamp()
          AND NOT EXISTS (
              SELECT FROM readers
              WHERE readers.tenant_id = files.tenant_id AND starts_with(reads, files.url)
          )
    )
"""  # noqa: S608 (constants)
_EXPIRED = text(f"{_PAST} SELECT id, id, statement_timestamp() FROM past ORDER BY id")  # noqa: S608 (constants)
_PREVIEW = text(f"{_PAST} SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM past")  # noqa: S608 (constants)
