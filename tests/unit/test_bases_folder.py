"""A base model in a folder: what is taken, what is refused, and when it counts as another."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_worker.bases import resolve
from gpu_worker.trainer.tiny_base import random_base
from models.errors import BaseModelError
from tests.environment import variables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_base(tmp_path / "base", hidden=32, layers=1, vocab=300)


def test_a_folder_is_used_where_it_is(folder: Path) -> None:
    base = resolve(str(folder), weights=True)

    assert base.path == folder
    assert base.name == str(folder)
    assert base.revision.startswith("sha256:")
    assert resolve(f"file://{folder}", weights=False).revision == base.revision


def test_the_revision_is_the_content_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    revision = resolve(str(folder), weights=True).revision
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "config.json", (1, 1))
    (copy / "README.md").write_text("other words")
    (copy / "training_args.bin").write_bytes(b"a pickle that nobody reads")

    assert resolve(str(copy), weights=True).revision == revision

    (copy / "tokenizer_config.json").write_text("{}")
    assert resolve(str(copy), weights=True).revision != revision


def test_other_weights_of_the_same_size_are_another_revision(tmp_path: Path) -> None:
    one = random_base(tmp_path / "one", hidden=128, layers=4, vocab=2000, seed=1)
    other = random_base(tmp_path / "other", hidden=128, layers=4, vocab=2000, seed=2)
    size = (one / "model.safetensors").stat().st_size

    assert size == (other / "model.safetensors").stat().st_size
    assert size > 1 << 20  # large enough to be sampled
    assert resolve(str(one), weights=True).revision != resolve(str(other), weights=True).revision


def test_a_pinned_folder_must_not_change(folder: Path) -> None:
    pinned = resolve(str(folder), weights=False).revision

    assert resolve(str(folder), pinned, weights=True).revision == pinned
    (folder / "chat_template.jinja").write_text("other")
    with pytest.raises(BaseModelError, match="changed after the data was prepared"):
        resolve(str(folder), pinned, weights=True)


def test_a_folder_has_no_branches(folder: Path) -> None:
    with pytest.raises(BaseModelError, match="no revision 'main'"):
        resolve(str(folder), "main", weights=True)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)


def _garbled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def _part_missing(folder: Path) -> None:
    parts = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not a model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is broken"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is broken"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json is broken"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (_pickled, r"pickled \(pytorch_model.bin\)"),
        (_adapter, "an adapter, not a base model"),
        (_torn, "model.safetensors is torn"),
        (_garbled, "model.safetensors is torn"),
        (_part_missing, "1 of the weight files are missing, model-00002-of-00002.safetensors"),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_what_is_no_model_is_refused_before_a_gpu_is_used(
    folder: Path, breaking: Callable[[Path], None], message: str, *, weights: bool
) -> None:
    breaking(folder)

    with pytest.raises(BaseModelError, match=message) as raised:
        resolve(str(folder), weights=weights)

    assert raised.value.where == str(folder)
    assert raised.value.remedy


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for wanted in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere", "a b", "../up/down"):
        with pytest.raises(BaseModelError, match="no such folder"):
            resolve(wanted, weights=True)


def test_remote_code_needs_the_administrator(folder: Path) -> None:
    with variables(CELORA_REMOTE_CODE_MODELS="owner/other"):
        with pytest.raises(BaseModelError, match="may not run its own code"):
            resolve(str(folder), weights=True, trust_remote_code=True)
        with pytest.raises(BaseModelError, match="may not run its own code"):
            resolve("owner/othe", weights=True, trust_remote_code=True)
    with variables(CELORA_REMOTE_CODE_MODELS=f"owner/other, {folder}"):
        assert resolve(str(folder), weights=True, trust_remote_code=True).path == folder


def test_code_that_may_run_is_part_of_the_revision(folder: Path) -> None:
    with variables(CELORA_REMOTE_CODE_MODELS=str(folder)):
        (folder / "modeling_own.py").write_text("1")
        first = resolve(str(folder), weights=True, trust_remote_code=True).revision
        (folder / "modeling_own.py").write_text("2")
        assert resolve(str(folder), weights=True, trust_remote_code=True).revision != first


def test_no_heavy_library_is_imported(folder: Path) -> None:
    check = (
        "import sys; from gpu_worker.bases import resolve;"
        f"resolve({str(folder)!r}, weights=True);"
        "sys.exit(str({'torch', 'transformers', 'huggingface_hub', 'fsspec'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == "set()"
