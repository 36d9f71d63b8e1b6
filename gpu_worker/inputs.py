"""Fetch to this machine what a stage needs: base model, prepared data, checkpoint, adapter.

The trainer gets local folders only: it has no credentials, and no network is in its way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gpu_worker import prepared_data
from gpu_worker.base_evaluation import known_base
from gpu_worker.bases import resolve
from gpu_worker.lease import Lease
from gpu_worker.protocol import Run
from gpu_worker.tenant_access import access_of
from models import store
from models.adapter_work import ChatWork, ExportWork
from models.errors import DataError, NotFoundError, UnavailableError
from models.queries.attempts import Claim
from models.settings import settings
from models.states import Stage
from training_data.access import reading_as

Say = Callable[[str], None]
_STAGES: dict[Stage, Literal["train", "evaluate", "export", "generate"]] = {
    Stage.TRAIN: "train",
    Stage.EVALUATE: "evaluate",
    Stage.EXPORT: "export",
    Stage.GENERATE: "generate",
}


def gather(claim: Claim, lease: Lease, device_kind: str, say: Say) -> Run:
    """Fetch what is not here yet, and say what takes time. Raises CeloraError."""
    base_path, base_revision = _base(claim, lease, say)
    prepared = _prepared(claim, say)
    resume, adapter, start_adapter = None, None, None
    if claim.stage is Stage.TRAIN and claim.start_checkpoint is not None:
        say(f"fetching the checkpoint of step {claim.start_checkpoint.step}")
        resume = str(_fetch(claim.start_checkpoint.url))
    # A dpo job's reference is the adapter it began with, on a resume and in the evaluation too.
    first = claim.stage is Stage.TRAIN and resume is None
    if claim.spec.start_from_adapter and (first or claim.spec.method == "dpo"):
        start_adapter = str(_start_adapter(claim, say))
    if claim.stage is Stage.EVALUATE and claim.adapter_url is not None:
        adapter = str(_fetch(claim.adapter_url))
    elif claim.stage in {Stage.EXPORT, Stage.GENERATE}:
        adapter = str(_trained_before(claim, say))
    known = known_base(claim, lease, device_kind) if claim.stage is Stage.EVALUATE else None
    spec = claim.spec
    if claim.rows_held_out == 0:  # the trainer need not keep its model: no evaluation follows
        spec = spec.model_copy(update={"evaluate": False})
    output = store.work_folder(claim.job_id, claim.fence)
    output.mkdir(parents=True, exist_ok=True)
    return Run(
        job_id=claim.job_id,
        fence=claim.fence,
        stage=_STAGES[claim.stage],
        spec=spec.model_dump(mode="json"),
        batch_size=claim.overrides.get("batch_size", spec.batch_size),
        gradient_accumulation=claim.overrides.get(
            "gradient_accumulation", spec.gradient_accumulation
        ),
        base_path=base_path,
        base_name=spec.base_model,
        base_revision=base_revision,
        prepared_path=prepared,
        output_path=str(output),
        resume_from=resume,
        start_adapter_path=start_adapter,
        adapter_path=adapter,
        work=claim.work,
        base_evaluation=known,
        facts={"data_digest": claim.data_digest},
    )


# Copies of hub and URL models that this process has fetched: they are this machine's own, and stay
# as they are. A folder is the user's, and is looked at before every job.
_copies: dict[tuple[str, str, bool], Path] = {}


def _base(claim: Claim, lease: Lease, say: Say) -> tuple[str, str]:
    """Folder and revision of the base model, its weights included. Raises BaseModelError."""
    spec = claim.spec
    if spec.scripted:
        return "", claim.base_revision or ""
    # The revision that preprocessing resolved: a branch, or a folder, may have changed since.
    revision = claim.base_revision or spec.base_revision
    key = (spec.base_model, revision or "", spec.trust_remote_code)
    known = _copies.get(key)
    if known is not None and known.is_dir():
        return str(known), key[1]
    say("fetching the base model")
    with reading_as(access_of(lease, claim.tenant)):
        base = resolve(
            spec.base_model, revision, weights=True, trust_remote_code=spec.trust_remote_code
        )
    if revision is not None and base.path != store.local_path(spec.base_model):
        _copies[key] = base.path
    return str(base.path), base.revision


def _prepared(claim: Claim, say: Say) -> str:
    if claim.spec.scripted or claim.stage is Stage.GENERATE:
        return ""
    if claim.stage is Stage.EXPORT:
        return _held_out(claim)
    if claim.prepared_url is None or claim.data_digest is None:
        raise DataError("the job has no prepared data", remedy="submit it again")
    if not store.is_local(claim.prepared_url):
        say("fetching the prepared data")
    folder = _fetch(claim.prepared_url)
    prepared_data.verify(folder, claim.data_digest)
    return str(folder)


def _held_out(claim: Claim) -> str:
    """For an export, whose comparison does without where the data is not there any more."""
    if claim.prepared_url is None or claim.data_digest is None:
        return ""
    try:
        folder = _fetch(claim.prepared_url)
        prepared_data.verify(folder, claim.data_digest)
    except (DataError, UnavailableError):
        return ""
    return str(folder)


def _trained_before(claim: Claim, say: Say) -> Path:
    """The adapter (or model) to export or to talk to, as a local folder. Raises NotFoundError."""
    work = ExportWork.of(claim.work) if claim.stage is Stage.EXPORT else ChatWork.of(claim.work)
    if not store.is_local(work.url):
        say(f"fetching the {work.kind} of {work.reference}")
    folder = _fetch(work.url)
    if not any(folder.glob("*.safetensors")):
        raise NotFoundError(
            f"the {work.kind} of {work.reference} is not there any more",
            where=work.url,
            remedy="run the job that made it again",
        )
    return folder


def _start_adapter(claim: Claim, say: Say) -> Path:
    """The adapter to begin with, as a local folder. Raises NotFoundError."""
    gone = NotFoundError(
        f"the adapter of job {claim.spec.after}, to begin with, is not there any more",
        where=claim.start_adapter_url,
        remedy="run that job again, or submit this one without start_from_adapter",
    )
    if claim.start_adapter_url is None:
        raise gone
    say(f"fetching the adapter of job {claim.spec.after}")
    # A copy lies in this job's folder, which goes with the job; the other job's may be just going.
    own = store.work_folder(claim.job_id, claim.fence) / "start-adapter"
    try:
        folder = store.download(claim.start_adapter_url, own)
    except UnavailableError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise gone from error
        raise
    if not (folder / "adapter_model.safetensors").is_file():
        raise gone
    return folder


def _fetch(url: str) -> Path:
    """A local folder with what lies at `url`. What this machine made itself is still here."""
    root = settings().artifacts_url.rstrip("/") + "/"
    below = url.removeprefix(root) if url.startswith(root) else url.rpartition("://")[2]
    parts = [part for part in below.split("/") if part not in {"", ".", ".."}]
    return store.download(url, settings().at_home("work", *parts))
