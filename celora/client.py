"""The functions of `import celora`: each one short transaction on the records."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from celora.spec_fields import DataFields, SpecFields
from celora.views import Event, Job, LogLine, Metric
from models.errors import InputError, SpecError
from models.queries import history
from models.queries import jobs as job_queries
from models.queries.waiting import Why, why_waiting
from models.session import transaction
from models.settings import settings
from models.spec import JobSpec, parse_spec
from models.states import JobState, StopReason

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from celora.planning.plan import Plan
    from models.tables import Job as JobRow
    from training_data.validate import Report
    from training_data.watch import Progress

_DATA_SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"})


def submit(
    spec: JobSpec | None = None,
    *,
    tenant: str = "default",
    user: str | None = None,
    idempotency_key: str | None = None,
    **fields: Unpack[SpecFields],
) -> Job:
    """Put a job on record; it runs when it is prepared and a GPU is free.

    `fields` are those of JobSpec, and win over `spec`. A key that the tenant used before returns
    that first job. Paths become absolute, for the workers run in other folders. Needs the database
    alone: the broker may be down. Raises SpecError, InputError, UnavailableError.
    """
    asked = spec.model_dump(exclude_unset=True) if spec is not None else {}
    whole = parse_spec(with_absolute_paths(asked | dict(fields)))
    with transaction() as session:
        if whole.after is not None:
            whole = whole.model_copy(
                update={"after": job_queries.resolve_job_id(session, whole.after)}
            )
        row = put_on_record(
            session,
            whole,
            tenant=tenant,
            user=user or current_user(),
            idempotency_key=idempotency_key,
        )
        return Job.of(row)


def put_on_record(
    session: Session,
    spec: JobSpec,
    *,
    tenant: str,
    user: str,
    idempotency_key: str | None = None,
    request: dict[str, Any] | None = None,
) -> JobRow:
    """`submit` in the caller's transaction, of a specification that is whole; the HTTP API keeps
    its `request` with it. Raises SpecError, InputError."""
    if spec.scripted and not settings().allow_scripted:
        raise SpecError(
            "scripted trainers are not allowed here",
            where="base_model",
            remedy="name a real base model; tests set CELORA_ALLOW_SCRIPTED=true",
        )
    return job_queries.insert_job(
        session,
        spec,
        tenant=tenant,
        user=user,
        idempotency_key=idempotency_key,
        request=request,
    )


def get(job: str | Job) -> Job:
    """A job as it stands now, by its id, a unique beginning of it, or "last" for the newest.

    Raises NotFoundError, UnavailableError; InputError when several ids begin so.
    """
    with transaction() as session:
        return Job.of(job_queries.get_job(session, _id(session, job)))


def jobs(
    *,
    tenant: str | None = None,
    state: str | Iterable[str] | None = None,
    limit: int = 50,
    after: str | Job | None = None,
) -> list[Job]:
    """Jobs, the newest first. `after`: the last job of the page before. Raises InputError."""
    states = None if state is None else _states([state] if isinstance(state, str) else state)
    with transaction() as session:
        rows = job_queries.list_jobs(
            session,
            tenant=tenant,
            states=states,
            limit=limit,
            after=None if after is None else _id(session, after),
        )
        return [Job.of(row) for row in rows]


def cancel(job: str | Job) -> Job:
    """Ask a job to stop for good. One that runs stops within seconds; a finished one is returned
    unchanged. Raises NotFoundError."""
    return _request_stop(job, StopReason.CANCEL)


def pause(job: str | Job) -> Job:
    """Hold a job: one that runs writes a checkpoint first. Raises NotFoundError, StateError."""
    return _request_stop(job, StopReason.PAUSE)


def resume(job: str | Job) -> Job:
    """Let a paused job go on from its newest checkpoint. Raises NotFoundError, StateError."""
    with transaction() as session:
        return Job.of(job_queries.resume_job(session, _id(session, job)))


def retry(job: str | Job) -> Job:
    """Run a failed job again from its newest checkpoint. Raises NotFoundError, StateError."""
    with transaction() as session:
        return Job.of(job_queries.retry_job(session, _id(session, job)))


def why(job: str | Job) -> Why:
    """Why a job waits (or does not), in a sentence and a code. Raises NotFoundError."""
    with transaction() as session:
        return why_waiting(session, _id(session, job))


def metrics(job: str | Job, *names: str) -> list[Metric]:
    """All points of a job's metrics, or those of some, by stage, name and step."""
    with transaction() as session:
        rows = history.metrics_of(session, _id(session, job), names or None)
        return [Metric(*row) for row in rows]


def events(job: str | Job, *, after: int = 0, limit: int = 1000) -> list[Event]:
    """A job's story, oldest first, after the event with id `after`."""
    with transaction() as session:
        rows = history.events_of(session, _id(session, job), after, limit)
        return [Event.model_validate(row) for row in rows]


def logs(job: str | Job, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
    """What the trainer printed, oldest first, after the line with id `after`."""
    with transaction() as session:
        rows = history.logs_of(session, _id(session, job), after, limit)
        return [LogLine.model_validate(row) for row in rows]


def validate(
    dataset: str,
    *,
    quality: bool = True,
    on_progress: Progress | None = None,
    **fields: Unpack[DataFields],
) -> Report:
    """What preparing `dataset` would find, without a job: its shape, its rows, what is wrong, and
    with `quality` what training on it would do (`verdict["quality"]`).

    With `base_model` it is tokenised as well, for lengths and steps. `on_progress` gets (what, rows
    so far). Raises SpecError, InputError for a path, BaseModelError, UnavailableError.
    """
    from training_data.validate import validate as examine

    given = with_absolute_paths({"dataset": dataset} | dict(fields))
    base_model = given.pop("base_model", None)
    tokenizer_path = None
    if base_model is not None:
        from gpu_worker.bases import resolve
        from training_data.rows import require_sources

        require_sources(parse_spec({**given, "base_model": base_model}))
        base = resolve(
            base_model,
            given.get("base_revision"),
            weights=False,
            trust_remote_code=given.get("trust_remote_code", False),
        )
        tokenizer_path = str(base.path)
    return examine(**given, tokenizer_path=tokenizer_path, quality=quality, on_progress=on_progress)


def plan(
    spec: JobSpec | None = None,
    *,
    read_data: bool = True,
    on_progress: Progress | None = None,
    **fields: Unpack[SpecFields],
) -> Plan:
    """What a job would train, need and take, before a GPU is used: parameters, GPU memory by part,
    which of the pool's GPUs fit and with what micro-batch, steps, tokens, hours.

    The data is read and tokenised for it unless `read_data` is False. The base model's weights are
    not fetched. Raises SpecError, InputError, BaseModelError, UnavailableError, SetupError.
    """
    from celora.planning.plan import make_plan

    asked = spec.model_dump(exclude_unset=True) if spec is not None else {}
    whole = parse_spec(with_absolute_paths(asked | dict(fields)))
    if not read_data:
        return make_plan(whole)
    wanted = {name: getattr(whole, name) for name in DataFields.__annotations__}
    report = validate(whole.dataset, quality=False, on_progress=on_progress, **wanted)
    return make_plan(whole, report)


def with_absolute_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with local paths made absolute; hub names and URLs stay as they are."""
    named = ("base_model", "dataset", "eval_dataset")
    return fields | {
        name: _absolute(fields[name]) for name in named if isinstance(fields.get(name), str)
    }


def current_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without an entry in /etc/passwd
        return f"uid {os.getuid()}"


def _absolute(text: str) -> str:
    if "://" in text or text.startswith("scripted:"):
        return text
    path = Path(text).expanduser()
    is_path = text.startswith(("/", "~", ".")) or path.suffix in _DATA_SUFFIXES or path.exists()
    # Not resolve(): a link may be the stable name of what it points to today.
    return os.path.normpath(path.absolute()) if is_path else text


def _states(names: Iterable[str]) -> list[JobState]:
    try:
        return [JobState(name) for name in names]
    except ValueError as error:
        raise InputError(str(error), where="state", remedy=f"use {', '.join(JobState)}") from None


def _request_stop(job: str | Job, reason: StopReason) -> Job:
    with transaction() as session:
        return Job.of(job_queries.request_stop(session, _id(session, job), reason))


def _id(session: Any, job: str | Job) -> str:
    return job.id if isinstance(job, Job) else job_queries.resolve_job_id(session, job)
