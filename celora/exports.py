"""Exports: what a job has trained, as PEFT, vLLM or llama.cpp's converter load it."""

from __future__ import annotations

import shutil
from pathlib import Path

from celora.client import current_user
from celora.views import Job
from models import store
from models.adapter_work import Format
from models.errors import InputError, StateError
from models.queries import adapter_work, products
from models.queries.adapters import resolve
from models.queries.jobs import get_job
from models.session import transaction
from models.states import JobState


def export(
    reference: str,
    format: Format = "adapter",  # noqa: A002 (the option's name, here and in the command)
    *,
    tenant: str | None = None,
    user: str | None = None,
) -> Job:
    """Have what a job has trained written as others load it, on a GPU that is free; the job that
    does it is returned at once.

    `reference` is a job's id, `name/version` or `name@alias`. The result is loaded again and
    compared with what was trained: `job.result["export"]` holds the figures. Raises NotFoundError,
    InputError; StateError for a job that has left no adapter.
    """
    with transaction() as session:
        found = resolve(session, tenant, reference)
        return Job.of(
            adapter_work.insert_export(session, found, format, user=user or current_user())
        )


def download(job: Job, folder: str | Path) -> Path:
    """Copy what an export has written to a local folder, which must be new or empty.

    Raises InputError for the folder; StateError for an export without a result; UnavailableError.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("it exists, and is not empty", where=str(target), remedy="name a new one")
    url = _url(job)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        target.rmdir()
    found = store.download(url, target)
    if found != target:  # a local store: the place itself
        staging = target.with_name(f"{target.name}.incoming")
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(found, staging)
        staging.rename(target)
    return target


def place(job: Job) -> str:
    """Where an export lies: a folder where the store is local, else a URL. Raises StateError."""
    url = _url(job)
    return str(store.local_path(url)) if store.is_local(url) else url


def _url(job: Job) -> str:
    with transaction() as session:
        state = JobState(get_job(session, job.id).state)
        found = [one for one in products.artifacts_of(session, job.id) if one.kind == "export"]
    if not found:
        gone = "retention has deleted it" if state is JobState.COMPLETED else f"it is {state}"
        raise StateError(f"export {job.id} has no result: {gone}", remedy="export it again")
    return found[-1].url
