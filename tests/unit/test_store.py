"""The artifact store: its layout, its refusal of paths that could leave it, and copying."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from models import store
from models.errors import InputError
from models.settings import settings


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CELORA_ARTIFACTS", str(tmp_path / "artifacts"))
    settings.cache_clear()
    yield tmp_path / "artifacts"
    settings.cache_clear()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """fsspec's in-memory store, which is reached the way S3 is."""
    monkeypatch.setenv("CELORA_ARTIFACTS", "memory://bucket/celora")
    monkeypatch.setenv("CELORA_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield "memory://bucket/celora"
    store.remove("memory://bucket/celora")
    settings.cache_clear()


def a_folder(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"\x00\x01")
    (path / "deep" / "state.json").write_text("{}")
    return path


def content(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("part", ["..", "a/b", "", ".hidden", "a\\b", "a\nb", "/etc"])
def test_a_part_that_could_leave_the_folder_is_refused(part: str) -> None:
    with pytest.raises(InputError):
        store.join("s3://bucket", part)


def test_files_of_an_attempt_hold_job_and_fence(artifacts: Path) -> None:
    assert store.checkpoint_url("ftjob-a", 3, 200) == (
        f"{artifacts}/jobs/ftjob-a/3/checkpoints/step-200"
    )


def test_a_local_store_is_written_in_place(artifacts: Path) -> None:
    assert store.work_folder("ftjob-a", 3) == artifacts / "jobs" / "ftjob-a" / "3"


def test_a_local_folder_is_not_copied_onto_itself(artifacts: Path) -> None:
    folder = a_folder(artifacts / "prepared" / "abc")
    store.upload(folder, store.prepared_url("abc"))
    assert len(content(folder)) == 2


def test_a_local_folder_elsewhere_arrives_whole(artifacts: Path, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "elsewhere")
    store.upload(folder, store.prepared_url("abc"))
    assert content(artifacts / "prepared" / "abc") == content(folder)


def test_a_remote_folder_goes_there_and_back(remote: str, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "out")
    url = store.prepared_url("abc")
    assert url.startswith(remote)
    assert not store.exists(url)
    store.upload(folder, url)
    assert store.exists(url)
    back = store.download(url, tmp_path / "back")
    assert content(back) == content(folder)
    store.remove(url)
    assert not store.exists(url)


def test_a_download_that_was_cut_off_starts_anew(remote: str, tmp_path: Path) -> None:
    assert remote
    folder = a_folder(tmp_path / "out")
    store.upload(folder, store.prepared_url("abc"))
    half = tmp_path / "back.incoming"
    half.mkdir()
    (half / "torn").write_bytes(b"")
    back = store.download(store.prepared_url("abc"), tmp_path / "back")
    assert content(back) == content(folder)


def test_a_remote_folder_that_is_half_written_does_not_count(remote: str) -> None:
    assert remote
    url = store.prepared_url("abc")
    fsspec.filesystem("memory").pipe(f"{url}/train.arrow", b"half")
    assert not store.exists(url)


def test_a_second_upload_of_the_same_is_fine(artifacts: Path, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "elsewhere")
    store.upload(folder, store.prepared_url("abc"))
    store.upload(folder, store.prepared_url("abc"))
    assert [path.name for path in (artifacts / "prepared").iterdir()] == ["abc"]


def test_removing_what_is_not_there_is_fine(artifacts: Path) -> None:
    store.remove(str(artifacts / "nothing"))
