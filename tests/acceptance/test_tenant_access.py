"""A worker reaches for a job what its tenant may reach: own uploads, and the hub by own token."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

import celora
from celora.api.file_store import keep_file
from celora.views import Job
from gpu_worker.trainer.tiny_base import random_base
from models import secrets, store
from models.queries.hub_tokens import set_hub_token, tenant_id_of
from models.queries.tenants import change_tenant
from models.session import transaction
from tests.environment import variables
from tests.hub_server import HubServer
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TOKEN = "hf_of_the_team"
ROWS = "\n".join(json.dumps({"prompt": f"say {n}", "completion": f" {n}"}) for n in range(30))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("bases") / "tiny", hidden=32, layers=1, vocab=300)


@pytest.fixture(scope="module")
def running(stack: Stack, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cpu worker beside a hub with a gated model, which one of two tenants has a token for."""
    key = secrets.new_key()
    with HubServer() as hub, variables(CELORA_SECRET_KEY=key):
        hub.add("owner/gated", base, token=TOKEN)
        with transaction() as session:
            for tenant in ("team", "others"):
                change_tenant(session, tenant, {})
            set_hub_token(session, "team", secrets.seal(TOKEN))
        stack.start("dispatcher")
        stack.start(
            "cpu-worker",
            CELORA_SECRET_KEY=key,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path_factory.mktemp("hf")),
        )
        yield stack


def settled(stack: Stack, job: Job) -> Job:
    """Prepared, or failed in preparation."""
    stack.wait_until("it is looked at", lambda: celora.get(job).state != "pending", seconds=120)
    return celora.get(job)


def test_a_gated_model_is_fetched_with_the_tenants_own_token(
    running: Stack, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS)
    theirs = celora.submit(base_model="owner/gated", dataset=str(rows), tenant="team")
    assert settled(running, theirs).state == "queued", celora.get(theirs).error
    other = settled(
        running, celora.submit(base_model="owner/gated", dataset=str(rows), tenant="others")
    )
    assert other.state == "failed"
    assert other.error is not None
    assert "gated" in other.error["message"]
    assert TOKEN not in running.logs()
    with transaction() as session:
        assert TOKEN not in str(session.execute(text("SELECT * FROM hub_tokens")).all())


def test_an_upload_is_read_for_its_own_tenant_alone(running: Stack, base: Path) -> None:
    with transaction() as session:
        team = tenant_id_of(session, "team")
    file = keep_file(
        team, "ann", io.BytesIO(ROWS.encode()), filename="rows.jsonl", purpose="fine-tune"
    )
    dataset = store.join(file.url, "data.jsonl")
    theirs = celora.submit(base_model=str(base), dataset=dataset, tenant="team")
    assert settled(running, theirs).state == "queued", celora.get(theirs).error
    other = settled(running, celora.submit(base_model=str(base), dataset=dataset, tenant="others"))
    assert other.state == "failed"
    assert other.error is not None
    assert "of their own tenant" in other.error["message"]
