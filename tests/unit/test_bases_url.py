"""A base model at an fsspec URL is copied once, whole or not at all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from gpu_worker import base_files
from gpu_worker.bases import Base, resolve
from gpu_worker.trainer.tiny_base import random_base
from models.errors import BaseModelError, CeloraError, UnavailableError
from tests.environment import variables

URL = "memory://models/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_base(tmp_path / "base", hidden=32, layers=1, vocab=300)


@pytest.fixture
def store(folder: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """The model at URL, in a store in this process's memory."""
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/models/tiny/", recursive=True)
    store.pipe("/models/tiny/README.md", b"words")
    store.pipe("/models/tiny/original/consolidated.00.pth", b"the same weights once more")
    yield store
    store.rm("/models", recursive=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with variables(CELORA_HOME=str(tmp_path / "home")):
        yield tmp_path / "home" / "bases"


def _names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


@pytest.mark.usefixtures("store")
def test_it_is_the_same_model_as_the_folder_it_came_from(folder: Path, home: Path) -> None:
    base = resolve(URL, weights=True)

    assert base.path.parent == home
    assert base.name == URL
    assert base.revision == resolve(str(folder), weights=True).revision
    assert _names(base.path) == _names(folder)
    assert (base.path / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("store", "home")
def test_preparing_data_needs_no_weights() -> None:
    small = resolve(URL, weights=False)

    assert "model.safetensors" not in _names(small.path)
    assert {"config.json", "tokenizer.json"} <= _names(small.path)
    whole = resolve(URL, weights=True)
    assert whole.revision == small.revision
    assert whole.path != small.path
    assert resolve(URL, weights=False).path == whole.path


@pytest.mark.usefixtures("home")
def test_a_changed_model_is_fetched_anew_and_a_pinned_one_refused(
    store: fsspec.AbstractFileSystem,
) -> None:
    first = resolve(URL, weights=True)
    store.pipe("/models/tiny/chat_template.jinja", b"other")

    second = resolve(URL, weights=True)

    assert second.revision != first.revision
    assert (second.path / "chat_template.jinja").read_bytes() == b"other"
    assert (first.path / "chat_template.jinja").read_bytes() != b"other"
    with pytest.raises(BaseModelError, match="changed after the data was prepared"):
        resolve(URL, first.revision, weights=True)


@pytest.mark.usefixtures("store")
def test_what_a_killed_copy_left_is_never_taken_for_a_model(home: Path) -> None:
    name = resolve(URL, weights=False).revision.removeprefix("sha256:")
    torn = home / f"{name}.incoming"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of it")

    base = resolve(URL, weights=True)

    assert base_files.content_digest(base_files.local_files(base.path)) == base.revision
    assert not torn.exists()


@pytest.mark.usefixtures("home")
def test_many_may_fetch_it_at_once(folder: Path) -> None:
    # Not from the store in memory: all who open one of its files share one position in it.
    url = f"local://{folder}"

    def fetch(_: int) -> Base:
        return resolve(url, weights=True)

    with ThreadPoolExecutor(8) as pool:
        bases = set(pool.map(fetch, range(8)))

    assert len(bases) == 1


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("memory://models/nowhere", BaseModelError, "nothing at this address"),
        ("nosuch://models/tiny", BaseModelError, "this kind of address cannot be read"),
        ("http://127.0.0.1:9/models/tiny", UnavailableError, "the store did not answer"),
    ],
)
def test_an_address_that_gives_nothing_is_explained(
    url: str, kind: type[CeloraError], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        resolve(url, weights=True)

    assert raised.value.where == url
    assert raised.value.remedy


@pytest.mark.usefixtures("home")
def test_the_rules_of_a_folder_hold(store: fsspec.AbstractFileSystem) -> None:
    store.mv("/models/tiny/model.safetensors", "/models/tiny/pytorch_model.bin")

    with pytest.raises(BaseModelError, match="pickled"):
        resolve(URL, weights=False)
