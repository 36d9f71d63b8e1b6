"""Files in an artifact store, and jobs whose records say that they are theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from models import store
from models.queries import attempts, jobs, placement, products
from models.session import transaction
from models.settings import settings
from models.states import Outcome, Stage
from models.store_tree import folders
from tests import records
from tests.environment import variables

DAY_SECONDS = 86_400


@contextmanager
def artifacts(kind: str, folder: Path) -> Iterator[str]:
    """A store of its own: `local`, `file` (as a URL), or `memory`, reached the way S3 is."""
    url = {
        "local": str(folder / "artifacts"),
        "file": f"file://{folder}/artifacts",
        "memory": f"memory://bucket-{folder.name}",
    }[kind]
    with variables(CELORA_HOME=str(folder / "home"), CELORA_ARTIFACTS=url):
        yield url
        if kind == "memory":
            store.remove(url)


def sql(statement: str, **values: Any) -> Any:
    with transaction() as session:
        result: Any = session.execute(text(statement), values)
        return result.all() if result.returns_rows else None


def put(url: str, size_bytes: int = 100) -> str:
    """A whole folder in the store, of that size."""
    folder = settings().at_home("made")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "content").write_bytes(b"x" * size_bytes)
    store.upload(folder, url)
    return url


def left() -> set[str]:
    """Paths of all that stands in the store, without the sweep's own note."""
    found = set()
    for part in ("jobs", "prepared"):
        for folder in folders(store.join(settings().artifacts_url, part)):
            found |= {f"{part}/{folder.name}/{entry.path}".rstrip("/") for entry in folder.entries}
    return {path.removesuffix("/content") for path in found if not path.endswith("/_whole")}


def retention(tenant: str, rules: object) -> None:
    """What a tenant's rules are, readable or not; the tenant has to be there."""
    sql(
        "UPDATE tenants SET retention = CAST(:rules AS jsonb) WHERE name = :tenant",
        rules=json.dumps(rules),
        tenant=tenant,
    )


def trained(
    tenant: str = "default",
    *,
    outcome: Outcome = Outcome.COMPLETED,
    steps: tuple[int, ...] = (10, 20),
    adapter: bool = True,
    prepared: str | None = None,
    size_bytes: int = 100,
    **fields: Any,
) -> str:
    """A job that has run once, with its checkpoints and its adapter in the store.

    `prepared` is the digest of its data. Outcome LOST leaves it waiting for its next attempt.
    """
    job_id = records.submit(tenant, **fields)
    fence = _prepare(job_id, prepared, size_bytes)
    records.add_gpu()
    assert job_id in [one.job_id for one in records.place()]
    fence = records.job(job_id).fence
    records.claimed(job_id, Stage.TRAIN)
    with transaction() as session:
        for step in steps:
            products.register_checkpoint(
                session,
                job_id,
                fence,
                step=step,
                url=put(store.checkpoint_url(job_id, fence, step), size_bytes),
                size_bytes=size_bytes,
                trained_tokens=step,
                metrics={},
            )
        if adapter:
            products.register_artifact(
                session,
                job_id,
                fence,
                kind="adapter",
                url=put(store.join(store.attempt_url(job_id, fence), "adapter"), size_bytes),
                size_bytes=size_bytes,
            )
        stage = Stage.EVALUATE if outcome is Outcome.COMPLETED else Stage.TRAIN
        if stage is Stage.EVALUATE:
            attempts.finish_stage(session, job_id, fence, Stage.TRAIN, Stage.EVALUATE)
        attempts.end_attempt(session, job_id, fence, outcome, error={"message": "as asked"})
    return job_id


def _prepare(job_id: str, digest: str | None, size_bytes: int) -> int:
    with transaction() as session:
        placement.place_preprocess(session, 1000)
        fence = jobs.get_job(session, job_id).fence
    records.claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
    url = None if digest is None else store.prepared_url(digest)
    known = url is None or store.exists(url)
    if url is not None and not known:
        put(url, size_bytes)
    with transaction() as session:
        products.set_prepared(
            session,
            job_id,
            fence,
            prepared_url=url,
            data_digest=digest,
            base_revision="r1",
            verdict={"total_steps": 30},
            prepared_bytes=None if known else size_bytes,
        )
        attempts.end_attempt(session, job_id, fence, Outcome.COMPLETED)
    return fence


def age(days: float) -> None:
    """Make all that happened so far as old as that."""
    past = f"interval '{days * DAY_SECONDS} seconds'"
    for table, columns in {
        "jobs": ("finished_at",),
        "attempts": ("ended_at",),
        "artifacts": ("created_at",),
        "checkpoints": ("registered_at",),
        "prepared_data": ("created_at", "last_used_at"),
        "log_lines": ("logged_at",),
    }.items():
        moved = ", ".join(f"{column} = {column} - {past}" for column in columns)
        sql(f"UPDATE {table} SET {moved}")  # noqa: S608 (names of our own)


def age_store(days: float = 2) -> None:
    """Make every file in the store as old as that."""
    url = settings().artifacts_url
    if store.is_local(url):
        for path in store.local_path(url).rglob("*"):
            age_file(path, days)
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    for path in filesystem.find(root):
        filesystem.store[path].created = filesystem.store[path].created.replace(year=2020)


def age_file(path: Path, days: float) -> None:
    then = path.stat().st_mtime - days * DAY_SECONDS
    os.utime(path, (then, then))
