"""The artifact store on S3, over TLS: what a host sees of another's, and what is said of trouble.

The other tests of the store run on a folder or in memory, which have none of S3's ways: no rename,
no folders, a client that remembers listings, exceptions that are no OSErrors.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from celora.api.caller import Caller
from celora.api.file_store import content_of, delete_file, keep_file, own_file
from celora.doctor import Verdict, services
from gpu_worker.checkpoints import CheckpointKeeper
from gpu_worker.lease import Lease, now
from gpu_worker.protocol import CheckpointSaved
from models import store
from models.errors import UnavailableError
from models.queries import history, prepared
from models.queries.hub_tokens import tenant_id_of
from models.queries.tenants import change_tenant
from models.session import transaction
from models.states import Outcome
from models.store_tree import folders
from tasks.dispatcher import sweep as sweeping
from tests import records, s3_server, stored, tls_servers
from tests.environment import variables
from tests.s3_server import BUCKET, KEYS, S3Server, reached
from tests.tcp_proxy import TcpProxy, proxy_to
from tests.waiting import until
from training_data.access import Access, reading_as
from training_data.files import digest_file
from training_data.locations import FileSet, locate

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    made = tls_servers.certificates(folder / "tls", "127.0.0.1")
    pair = (made.certificate, made.key)
    with s3_server.own_server(folder, certificate=pair, authority=made.authority) as running:
        running.make_bucket()
        yield running


@pytest.fixture
def artifacts(server: S3Server, tmp_path: Path) -> Iterator[str]:
    """A place of the test's own in the bucket."""
    url = f"s3://{BUCKET}/{tmp_path.name}"
    with reached(url, tmp_path / "home", **server.environment()):
        yield url


def a_folder(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"\x00\x01")
    (path / "deep" / "state.json").write_text("{}")
    return path


def key(url: str) -> str:
    return url.removeprefix("s3://")


def test_a_folder_goes_there_and_back_and_leaves_nothing(artifacts: str, tmp_path: Path) -> None:
    url = store.checkpoint_url("ftjob-a", 1, 5)
    store.upload(a_folder(tmp_path / "out"), url)
    assert store.exists(url)
    assert store.size_bytes(url) == 4
    assert store.read(url, "weights.safetensors") == b"\x00\x01"
    back = store.download(url, tmp_path / "back")
    found = sorted(file.relative_to(back).as_posix() for file in back.rglob("*") if file.is_file())
    assert found == ["deep/state.json", "weights.safetensors"]
    assert not list(tmp_path.glob("back.*"))
    store.remove(url)
    store.remove(url)
    assert not store.exists(url)
    assert list(folders(artifacts)) == []
    with pytest.raises(UnavailableError, match="the artifact store refused a read") as raised:
        store.download(url, tmp_path / "again")
    assert isinstance(raised.value.__cause__, FileNotFoundError)


def test_what_another_host_writes_is_seen_at_once(server: S3Server, artifacts: str) -> None:
    """Though this process has listed the place before, and found something else there."""
    url = store.prepared_url("abc")
    rows = f"{artifacts}/rows.jsonl"
    server.put(key(rows), ROWS)
    server.put(f"{key(url)}/train.arrow", b"1")
    assert [folder.name for folder in folders(artifacts)] == ["prepared", "rows.jsonl"]
    assert store.size_bytes(url) == 1
    assert not store.exists(url)
    assert [one.name for one in files(artifacts).files] == ["rows.jsonl"]
    server.put(key(rows), ROWS * 100)
    server.put(f"{key(url)}/eval.arrow", b"22")
    server.put(f"{key(url)}/_whole", b"")
    assert store.exists(url)
    assert store.size_bytes(url) == 3
    assert store.read_text(rows) == (ROWS * 100).decode()  # not as long as it was before
    assert digest_file(files(artifacts).files[0], lambda: None) == sha256(ROWS * 100).hexdigest()
    server.put(f"{key(artifacts)}/train-2.jsonl", ROWS)
    assert [one.name for one in files(artifacts).files] == ["train-2.jsonl"]


def files(url: str) -> FileSet:
    found = locate(url, splits=("train",), revision=None)
    assert isinstance(found, FileSet)
    return found


def test_half_an_upload_and_half_a_deletion_do_not_count(
    server: S3Server, artifacts: str, tmp_path: Path
) -> None:
    assert artifacts
    url = store.checkpoint_url("ftjob-a", 1, 5)
    before = len(server.requests())
    store.upload(a_folder(tmp_path / "out"), url)
    store.remove(url)
    until(lambda: any("?delete" in asked for asked in server.requests()[before:]))
    asked = [one for one in server.requests()[before:] if not one.startswith(("GET", "HEAD"))]
    whole = f"/{key(url)}/_whole"
    assert sorted(asked[:2]) == [
        f"PUT {whole[:-6]}deep/state.json",
        f"PUT {whole[:-6]}weights.safetensors",
    ]
    assert asked[2:4] == [f"PUT {whole}", f"DELETE {whole}"]  # written last, deleted first
    assert asked[4].startswith("POST")
    server.put(f"{key(url)}/weights.safetensors", b"half")
    with pytest.raises(UnavailableError, match="not whole"):
        store.download(url, tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


def test_workers_of_one_host_fetch_the_same_data_once(
    server: S3Server, artifacts: str, tmp_path: Path
) -> None:
    url = f"{artifacts}/prepared/abc"
    store.upload(a_folder(tmp_path / "out"), url)
    with ThreadPoolExecutor(8) as workers:
        found = set(workers.map(lambda _: store.download(url, tmp_path / "back"), range(8)))
    assert found == {tmp_path / "back"}
    got = f"GET /{key(url)}/weights.safetensors"
    assert server.requests().count(got) == 1
    assert sorted(path.name for path in tmp_path.glob("back*")) == ["back"]


@pytest.mark.usefixtures("database", "artifacts")
def test_two_that_prepare_the_same_at_once_do_not_mix_their_files() -> None:
    records.clear()
    with transaction() as session:
        first, second = (prepared.find_place(session, "abc") for _ in range(2))
        assert first.url != second.url
        assert prepared.register_prepared(session, "abc", second.url, 5) == second.url
        assert prepared.register_prepared(session, "abc", first.url, 5) == second.url
        assert prepared.find_place(session, "abc") == prepared.Place(second.url, on_record=True)


@pytest.mark.usefixtures("database")
def test_orphans_are_found_by_the_stores_own_clock_and_the_rest_stays(artifacts: str) -> None:
    records.clear()
    job_id = stored.trained(outcome=Outcome.LOST, prepared="abc")
    registered = stored.left()
    stored.put(f"{store.attempt_url(job_id, records.job(job_id).fence)}/checkpoints/step-30")
    stored.put(store.prepared_url("unknown"))
    stored.age(2)
    swept = sweeping.sweep()
    assert swept is not None
    assert (swept.counts, swept.problems) == ({"orphans": 1}, [])  # the other one is too young
    with variables(CELORA_ORPHAN_SECONDS="0.01", CELORA_ARTIFACTS=artifacts):
        until(lambda: sweeping.sweep() is not None and stored.left() == registered)


@pytest.mark.usefixtures("database", "artifacts")
def test_an_uploaded_file_is_kept_read_by_its_tenant_and_deleted() -> None:
    records.clear()
    with transaction() as session:
        change_tenant(session, "team", {})
        tenant_id = tenant_id_of(session, "team")
    scopes = frozenset({"read", "submit"})
    caller = Caller(tenant="team", user="ann", key_id="key_1", scopes=scopes, tenant_id=tenant_id)
    kept = keep_file(tenant_id, "ann", io.BytesIO(ROWS), filename="a.jsonl", purpose="fine-tune")
    with transaction() as session:
        assert b"".join(content_of(own_file(session, caller, kept.id))) == ROWS
    with reading_as(Access(files_url=store.files_url(tenant_id))):
        assert files(f"{kept.url}/data.jsonl").files[0].head() == ROWS
    delete_file(caller, kept.id)
    assert list(folders(store.files_url())) == []


@pytest.mark.parametrize(
    ("url", "changed", "expected"),
    [
        ("s3://celora-no-such-bucket", {}, ("bucket does not exist", "make the bucket")),
        (f"s3://{BUCKET}", dict.fromkeys(KEYS, ""), ("Unable to locate credentials", "AWS_ACCESS")),
        (f"s3://{BUCKET}", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ("127.0.0.1:9", "network")),
        ("gs://bucket", {}, ("gcsfs", "need a package")),
    ],
    ids=["no bucket", "no credentials", "away", "no package"],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(
    server: S3Server, tmp_path: Path, url: str, changed: dict[str, str], expected: tuple[str, str]
) -> None:
    environment = server.environment() | {"AWS_MAX_ATTEMPTS": "1"} | changed
    with reached(url, tmp_path / "home", **environment):
        (check,) = services.artifact_store()
    assert check.verdict is Verdict.FAIL
    assert expected[0] in check.said
    assert expected[1] in (check.remedy or "")
    assert "PUT /celora-no-such-bucket" not in server.requests()  # none is made unasked


def test_the_doctor_leaves_a_good_store_clean(artifacts: str) -> None:
    (check,) = services.artifact_store()
    assert check.verdict is Verdict.OK
    assert "wrote, read and deleted" in check.said
    assert list(folders(artifacts)) == []


@pytest.fixture
def line(server: S3Server) -> Iterator[TcpProxy]:
    with proxy_to(server.host, server.port) as proxy:
        yield proxy


@pytest.mark.usefixtures("database")
def test_a_checkpoint_waits_for_a_store_that_is_away_and_not_for_ever(
    server: S3Server, line: TcpProxy, tmp_path: Path
) -> None:
    records.clear()
    # The client's own retries would hide ours.
    environment = server.environment(port=line.port) | {"AWS_MAX_ATTEMPTS": "1"}
    patience = {"CELORA_FETCH_PATIENCE_SECONDS": "2"}
    with reached(f"s3://{BUCKET}/away", tmp_path / "home", **environment, **patience):
        claim = records.running()
        lease = Lease(
            claim.attempt_id, claim_sent_at=now(), on_stop=lambda _: None, on_lost=lambda _: None
        )
        keeper = CheckpointKeeper(claim.job_id, claim.fence, lease, flush=lambda: None)
        line.cut()
        keeper.add(saved(tmp_path, step=5))
        until(lambda: bool(failures(claim.job_id)))  # for longer than the patience
        refused = line.refused
        assert refused >= 2
        with variables(CELORA_FETCH_PATIENCE_SECONDS="60"):
            keeper.add(saved(tmp_path, step=10))
            until(lambda: len(failures(claim.job_id)) == 2)  # at once, as it was away before
            line.restore()
            keeper.add(saved(tmp_path, step=15))
            until(lambda: keeper.registered_step == 15)
            line.cut()
            refused = line.refused
            keeper.add(saved(tmp_path, step=20))
            until(lambda: line.refused > refused)
            line.restore()
            until(lambda: keeper.registered_step == 20)
        done = threading.Event()
        assert keeper.then(done.set)
        assert done.wait(30)
        lease.close()
    told = failures(claim.job_id)
    assert len(told) == 2
    assert "the checkpoint of step 5 was not kept" in told[0]
    assert "the artifact store refused a write" in told[0]


def saved(folder: Path, *, step: int) -> CheckpointSaved:
    path = a_folder(folder / f"step-{step}")
    return CheckpointSaved(step=step, path=str(path), size_bytes=4, trained_tokens=1, metrics={})


def failures(job_id: str) -> list[str]:
    with transaction() as session:
        events = history.events_of(session, job_id)
        return [one.message for one in events if one.kind == "checkpoint_failed"]
