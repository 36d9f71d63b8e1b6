"""Where data may be read from, and what a folder, a URL or a hub name means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest

from models.errors import InputError, UnavailableError
from models.store import files_url
from tests.environment import variables
from training_data.access import Access, reading_as
from training_data.locations import FileSet, HubName, locate

TRAIN = ("train",)


def names(dataset: str, splits: tuple[str, ...] = TRAIN) -> list[str]:
    found = locate(dataset, splits=splits, revision=None)
    assert isinstance(found, FileSet)
    return [file.name for file in found.files]


def fill(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return folder


def test_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "rows.jsonl")
    assert names(str(tmp_path / "rows.jsonl")) == ["rows.jsonl"]
    assert names(f"file://{tmp_path}/rows.jsonl") == ["rows.jsonl"]


def test_uploads_are_read_for_their_own_tenant_alone(tmp_path: Path) -> None:
    with variables(CELORA_ARTIFACTS=str(tmp_path)):
        fill(tmp_path / "files" / "1" / "file-a", "data.jsonl")
        path = str(tmp_path / "files" / "1" / "file-a" / "data.jsonl")
        with reading_as(Access(files_url=files_url(1))):
            assert names(path) == ["data.jsonl"]
            with variables(CELORA_DATASET_ROOTS="/srv/nowhere"):
                assert names(path) == ["data.jsonl"]
        for access in (Access(), Access(files_url=files_url(2)), Access(files_url=files_url(11))):
            with reading_as(access), pytest.raises(InputError, match="of their own tenant"):
                names(path)
        (tmp_path / "link.jsonl").symlink_to(path)
        for around in ("link.jsonl", "files", "files/1"):
            with pytest.raises(InputError, match="of their own tenant"):
                names(str(tmp_path / around))


def test_uploads_in_a_remote_store() -> None:
    with variables(CELORA_ARTIFACTS="memory://uploads"):
        path = "memory://uploads/files/1/file-a/data.jsonl"
        with fsspec.open(path, "wb") as file:
            file.write(b"{}")
        with reading_as(Access(files_url=files_url(1))):
            assert names(path) == ["data.jsonl"]
        others = (
            "MEMORY://uploads/x/../files/1/file-a/data.jsonl",
            "memory:///uploads/files/1/file-a/data.jsonl",
            "memory://uploads//files/1/file-a/data.jsonl",
            "memory://uploads/files/2/../1/file-a/data.jsonl",
            "memory://uploads/files/2/%2e%2e/1/file-a/data.jsonl",
            "memory://uploads/%66iles/1/file-a/data.jsonl",
            "memory://uploads/files/",
            "memory:///uploads/",
        )
        for spelled in (path, *others, "memory://uploads", "memory://uploads/files/1"):
            with (
                reading_as(Access(files_url=files_url(2))),
                pytest.raises(InputError, match="of their own tenant"),
            ):
                names(spelled)


@pytest.mark.parametrize(
    ("store", "spelled"),
    [
        ("s3://team/celora", "s3a://team/celora/files/1/file-a/data.jsonl"),
        ("s3://team/celora/", "S3:///team//celora/files/1/file-a/data.jsonl"),
        ("gs://team", "gcs://team/files/1/file-a/data.jsonl"),
        ("hdfs://node:9000/srv", "webhdfs://node:9870/srv/files/1/file-a/data.jsonl"),
    ],
)
def test_other_names_of_a_store_lead_to_no_uploads(store: str, spelled: str) -> None:
    with (
        variables(CELORA_ARTIFACTS=store),
        reading_as(Access(files_url=files_url(2))),
        pytest.raises(InputError, match="of their own tenant"),
    ):
        names(spelled)


@pytest.mark.parametrize("start", ["FILE://", "LOCAL://", "file://file://", "local://FILE://"])
def test_no_spelling_of_a_local_path_leads_to_uploads(tmp_path: Path, start: str) -> None:
    fill(tmp_path / "files" / "1" / "file-a", "data.jsonl")
    with variables(CELORA_ARTIFACTS=str(tmp_path)), pytest.raises(InputError) as refused:
        names(f"{start}{tmp_path}/files/1/file-a/data.jsonl")
    assert "of their own tenant" in refused.value.what or "not allowed" in refused.value.what


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as raised:
        names(str(tmp_path / "rows.jsonl"))
    assert "s3://" in str(raised.value)


def test_a_path_that_is_none() -> None:
    for path in ("a\0b.jsonl", "x" * 5000):
        with pytest.raises(InputError, match="cannot be read"):
            names(path)


def test_paths_outside_the_allowed_folders_are_refused(tmp_path: Path) -> None:
    inside, outside = fill(tmp_path / "in", "a.jsonl"), fill(tmp_path / "out", "b.jsonl")
    (inside / "link.jsonl").symlink_to(outside / "b.jsonl")
    (inside / "folder").mkdir()
    (inside / "folder" / "c.jsonl").symlink_to(outside / "b.jsonl")
    with variables(CELORA_DATASET_ROOTS=os.pathsep.join([str(inside), str(tmp_path / "other")])):
        assert names(str(inside / "a.jsonl")) == ["a.jsonl"]
        for path in (
            outside / "b.jsonl",
            inside / "link.jsonl",
            inside / "folder",
            inside / ".." / "out" / "b.jsonl",
            outside / "missing.jsonl",  # refused alike: whether it exists is not told
        ):
            with pytest.raises(InputError, match="may not be read from there"):
                names(str(path))
        with pytest.raises(InputError, match="may not be read from there"):
            names(f"local://{outside}/b.jsonl")


def test_no_store_leads_to_the_local_disk(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    for start in ("dir://", "generic://", "zip://", "simplecache::file://", "file://file://"):
        with pytest.raises(InputError, match="not allowed"):
            names(f"{start}{tmp_path}/a.jsonl")


def test_the_callers_own_check_is_told_every_resolved_place(tmp_path: Path) -> None:
    fill(tmp_path / "data", "a.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    told: list[str] = []
    locate(str(tmp_path / "link"), splits=TRAIN, revision=None, source_check=told.append)
    assert told == [str(tmp_path / "data"), str(tmp_path / "data" / "a.jsonl")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("b.jsonl", "a.jsonl", "README.md"), ["a.jsonl", "b.jsonl"]),
        (("train.jsonl", "test.jsonl"), ["train.jsonl"]),
        (("data/train-0.parquet", "data/test-0.parquet"), ["data/train-0.parquet"]),
        (("rows.parquet", "dataset_infos.json"), ["rows.parquet"]),
        (("a.jsonl.gz", ".hidden/b.jsonl", "c.csv"), ["a.jsonl.gz"]),
        (("trainer.jsonl", "more.jsonl"), ["more.jsonl", "trainer.jsonl"]),
    ],
)
def test_what_is_read_of_a_folder(
    tmp_path: Path, files: tuple[str, ...], expected: list[str]
) -> None:
    assert names(str(fill(tmp_path, *files))) == expected


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no data"):
        names(str(fill(tmp_path, "README.md")))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    found = locate(str(tmp_path / "rows.jsonl"), splits=TRAIN, revision=None)
    assert isinstance(found, FileSet)
    with pytest.raises(InputError, match="not a plain file"):
        found.files[0].head()


def saved(folder: Path, splits: list[str]) -> Path:
    (folder / "dataset_dict.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    for split in splits:
        fill(folder / split, "data-00000-of-00001.arrow", "dataset_info.json")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / split / "state.json").write_text(json.dumps(state))
    return folder


def test_a_saved_data_set_is_read_by_split(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["train", "test"])
    assert names(str(folder)) == ["train/data-00000-of-00001.arrow"]
    assert names(str(folder), ("validation", "test")) == ["test/data-00000-of-00001.arrow"]
    assert names(str(folder / "test")) == ["data-00000-of-00001.arrow"]
    with pytest.raises(InputError, match="no split 'dev'") as raised:
        names(str(folder), ("dev",))
    assert "train, test" in str(raised.value)


def test_a_saved_data_set_cannot_name_a_file_outside_of_it(tmp_path: Path) -> None:
    fill(tmp_path, "secret.arrow")
    folder = saved(tmp_path / "data", ["train"])
    state = {"_data_files": [{"filename": "../../secret.arrow"}]}
    (folder / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="lacks"):
        names(str(folder))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("openai/gsm8k", ("openai/gsm8k", None)),
        ("openai/gsm8k:main", ("openai/gsm8k", "main")),
        ("squad", ("squad", None)),
    ],
)
def test_hub_names(
    dataset: str, expected: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = locate(dataset, splits=TRAIN, revision="v1")
    assert isinstance(found, HubName)
    assert (found.name, found.config, found.revision) == (*expected, "v1")


def test_a_name_that_looks_like_a_file_is_no_hub_name() -> None:
    with pytest.raises(InputError, match="no such file"):
        names("data/rows.jsonl")


def test_urls_of_a_store() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/celora-data/train.jsonl", b'{"text": "a"}\n')
    store.pipe("/celora-data/test.jsonl", b'{"text": "b"}\n')
    try:
        assert names("memory://celora-data/test.jsonl") == ["test.jsonl"]
        assert names("memory://celora-data") == ["train.jsonl"]
        with variables(CELORA_DATASET_ROOTS="/nowhere"):
            assert names("memory://celora-data/test.jsonl") == ["test.jsonl"]
        found = locate("memory://celora-data/gone.jsonl", splits=TRAIN, revision=None)
        assert isinstance(found, FileSet)
        with pytest.raises(InputError, match="no such file"):
            found.files[0].head()
    finally:
        store.rm("/celora-data", recursive=True)


def test_a_store_that_cannot_be_reached() -> None:
    with pytest.raises(UnavailableError, match="could not be read"):
        names("http://127.0.0.1:9/rows.jsonl")


def test_an_unknown_kind_of_url() -> None:
    with pytest.raises(InputError, match="no store of the kind 'gopher'"):
        names("gopher://host/rows.jsonl")
