"""A folder is whole or not there; a torn checkpoint is recognised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpu_worker.trainer.checkpoint import durable_folder, open_checkpoint, require_finite
from models.errors import NonFiniteLossError, TrainingError


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "step-3"
    with durable_folder(target) as partial:
        (partial / "a").write_text("one")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["step-3"]
    assert (target / "a").read_text() == "one"


def test_an_error_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "step-3"
    with durable_folder(target) as partial:
        (partial / "a").write_text("one")

    def fails() -> None:
        with durable_folder(target) as partial:
            (partial / "a").write_text("two")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["step-3"]
    assert (target / "a").read_text() == "one"


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step-3.partial").mkdir()
    (tmp_path / ".step-3.partial" / "stale").write_text("x")
    with durable_folder(tmp_path / "step-3") as partial:
        (partial / "a").write_text("one")
    assert [p.name for p in (tmp_path / "step-3").iterdir()] == ["a"]


def saved(folder: Path) -> Path:
    (folder / "optimizer.pt").write_bytes(b"12345")
    progress = {
        "step": 7,
        "trained_tokens": 99,
        "losses": [2.5, 2.25],
        "files": {"optimizer.pt": 5},
    }
    (folder / "progress.json").write_text(json.dumps(progress))
    return folder


def test_a_whole_checkpoint_opens(tmp_path: Path) -> None:
    found = open_checkpoint(saved(tmp_path))
    assert (found.step, found.trained_tokens, found.losses) == (7, 99, (2.5, 2.25))
    assert found.size_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


@pytest.mark.parametrize("left", [b"123", None], ids=["short", "missing"])
def test_a_torn_checkpoint_names_the_file(tmp_path: Path, left: bytes | None) -> None:
    path = saved(tmp_path) / "optimizer.pt"
    path.unlink() if left is None else path.write_bytes(left)
    with pytest.raises(TrainingError, match=r"optimizer\.pt") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "{}", '{"step": 1}'])
def test_a_checkpoint_without_its_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    with pytest.raises(TrainingError, match="cannot be read"):
        open_checkpoint(tmp_path)


def test_weights_that_are_not_finite_are_not_saved() -> None:
    model = torch.nn.Linear(2, 2)
    require_finite(model, 4)
    with torch.no_grad():
        model.bias[1] = torch.nan
    with pytest.raises(NonFiniteLossError) as caught:
        require_finite(model, 4)
    assert caught.value.where == "step 4"
