"""What a stage is given: fetched, checked, and refused in words. Real data, a real database."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_worker import inputs
from gpu_worker.lease import Lease, now
from gpu_worker.protocol import Run
from gpu_worker.session import WorkerSession
from models import store
from models.errors import BaseModelError, NotFoundError
from models.queries import products
from models.queries.attempts import Claim
from models.session import transaction
from models.states import Outcome, Stage
from tasks.preparation import prepare_job
from tests import records
from tests.environment import variables


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _home(database: str, artifacts: Path) -> Iterator[None]:  # noqa: ARG001 (it has to be there)
    home = artifacts.parent / "home"  # one for all: the tokenizer is frozen once
    # A store that is no local folder to us, though it is one: every path of a remote store.
    with variables(CELORA_HOME=str(home), CELORA_ARTIFACTS=f"local://{artifacts}"):
        records.clear()
        yield


def queued(base: Path, folder: Path, **fields: Any) -> str:
    """A job whose data is prepared; it waits for a GPU."""
    data = folder / "rows.jsonl"
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(40))
    data.write_text("\n".join(lines))
    job_id = records.submit(base_model=str(base), dataset=str(data), **fields)
    assert records.place_preparation() == 1
    session = WorkerSession("cpu@host")
    assert prepare_job(session, job_id, records.job(job_id).fence), records.job(job_id).error
    return job_id


def claimed(job_id: str) -> Claim:
    records.add_gpu()
    assert [one.job_id for one in records.place()] == [job_id]
    return records.claimed(job_id, Stage.TRAIN)


def gathered(claim: Claim) -> Run:
    said: list[object] = []
    lease = Lease(claim.attempt_id, claim_sent_at=now(), on_stop=said.append, on_lost=said.append)
    try:
        return inputs.gather(claim, lease, "cpu", said.append)
    finally:
        lease.close()


def completed(job_id: str, adapter: Path) -> None:
    """The job has trained: its adapter is in the store."""
    claim = claimed(job_id)
    url = store.join(store.attempt_url(job_id, claim.fence), "adapter")
    store.upload(adapter, url)
    with transaction() as session:
        products.register_artifact(
            session, job_id, claim.fence, kind="adapter", url=url, size_bytes=1
        )
    records.end(job_id, claim.fence, Outcome.COMPLETED)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_base_that_changed_after_the_preparation_is_refused(base: Path, tmp_path: Path) -> None:
    own = tmp_path / "own-base"
    own.mkdir()
    for path in base.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    claim = claimed(queued(own, tmp_path))
    assert gathered(claim).base_revision.startswith("sha256:")
    weights = bytearray((own / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (own / "model.safetensors").write_bytes(weights)
    with pytest.raises(BaseModelError, match="base model changed after the data was prepared"):
        gathered(claim)


def test_the_adapter_of_the_job_before_is_fetched(
    base: Path, tmp_path: Path, adapter: Path
) -> None:
    first = queued(base, tmp_path, evaluate=False)
    completed(first, adapter)
    second = queued(base, tmp_path, after=first, start_from_adapter=True)
    claim = claimed(second)
    given = gathered(claim)
    assert given.resume_from is None
    assert given.start_adapter_path is not None
    folder = Path(given.start_adapter_path)
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"
    # Below the job's own folder: it goes with the job, and never with the first one.
    assert folder.is_relative_to(store.work_folder(second, claim.fence))


def test_a_checkpoint_of_its_own_comes_before_the_adapter(
    base: Path, tmp_path: Path, adapter: Path
) -> None:
    first = queued(base, tmp_path, evaluate=False)
    completed(first, adapter)
    second = queued(base, tmp_path, after=first, start_from_adapter=True)
    claim = claimed(second)
    url = store.checkpoint_url(second, claim.fence, 7)
    store.upload(adapter, url)
    with transaction() as session:
        products.register_checkpoint(
            session,
            second,
            claim.fence,
            step=7,
            url=url,
            size_bytes=1,
            trained_tokens=1,
            metrics={},
        )
    records.end(second, claim.fence, Outcome.LOST)
    again = claimed(second)
    given = gathered(again)
    assert given.resume_from is not None
    assert given.start_adapter_path is None
    # But for a dpo job: its reference is the adapter it began with, in the evaluation as well.
    pairs = dataclasses.replace(again, spec=again.spec.model_copy(update={"method": "dpo"}))
    given = gathered(pairs)
    assert given.resume_from is not None
    assert given.start_adapter_path is not None
    given = gathered(dataclasses.replace(pairs, stage=Stage.EVALUATE))
    assert given.resume_from is None
    assert given.start_adapter_path is not None


@pytest.mark.parametrize("how", ["folder", "weights", "record"])
def test_an_adapter_that_is_gone_is_said_in_words(
    base: Path, tmp_path: Path, adapter: Path, how: str
) -> None:
    first = queued(base, tmp_path, evaluate=False)
    if how == "weights":
        (adapter / "adapter_model.safetensors").unlink()
    completed(first, adapter)
    claim = claimed(queued(base, tmp_path, after=first, start_from_adapter=True))
    if how == "folder":
        store.remove(records.job(first).adapter_url or "")
    if how == "record":
        claim = dataclasses.replace(claim, start_adapter_url=None)
    with pytest.raises(NotFoundError, match=f"adapter of job {first}, to begin with") as raised:
        gathered(claim)
    assert raised.value.remedy
