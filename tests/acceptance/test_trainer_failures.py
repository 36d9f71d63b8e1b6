"""What a real trainer says when a job cannot go on, and that the next one can."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from gpu_worker.protocol import Failed, Metrics, Started
from tests.trainer_driver import Trainer, make_run, prepared_data, trained

pytestmark = pytest.mark.torch


FROZEN = """
from gpu_worker.trainer import base_model
load = base_model.load_model
def frozen(key):
    model = load(key)
    return model.requires_grad_(False)
base_model.load_model = frozen
from gpu_worker.trainer.__main__ import main
main()
"""


def test_nothing_to_train_is_an_error(base: Path, data: Path, tmp_path: Path) -> None:
    with Trainer(command=("-c", FROZEN)) as trainer:
        message = trainer.run(make_run(base, data, tmp_path, method="full"))
    assert isinstance(message, Failed)
    assert message.error["code"] == "nothing_to_train"
    assert not trainer.all(Started)


def test_unknown_layers_name_the_real_ones(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    message = warm.run(make_run(base, data, tmp_path, target_modules=("c_attn", "q_proj")))
    assert isinstance(message, Failed)
    assert message.error["code"] == "invalid_spec"
    assert "c_attn" in message.error["message"]
    assert "down_proj" in message.error["remedy"]
    assert "\n" not in message.error["message"]
    trained(warm.run(make_run(base, data, tmp_path / "after")))
    assert warm.checked().warm


def poisoned(base: Path, folder: Path) -> Path:
    """A base that answers NaN to token 511, and to it alone."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][511] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def poisoned_data(folder: Path) -> Path:
    """One row of 64 holds the token; the order of rows decides at which step it comes."""
    prepared_data(folder, vocab=511)
    with pa.OSFile(str(folder / "train.arrow")) as file, pa.ipc.open_stream(file) as stream:
        columns = stream.read_all().to_pydict()
    columns["input_ids"][17][0] = 511
    table = pa.table({k: pa.array(v, pa.list_(pa.int32())) for k, v in columns.items()})
    with (
        pa.OSFile(str(folder / "train.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    return folder


def test_a_loss_that_is_not_a_number_fails_the_job_and_names_the_step(
    warm: Trainer, base: Path, tmp_path: Path
) -> None:
    model, prepared = poisoned(base, tmp_path / "base"), poisoned_data(tmp_path / "data")
    fields: dict[str, Any] = {"max_steps": 16, "checkpoint_every_steps": 1}
    message = warm.run(make_run(model, prepared, tmp_path / "fails", **fields))
    assert isinstance(message, Failed)
    assert message.error["code"] == "non_finite_loss"
    good = len(warm.values("train_loss"))
    assert message.error["where"] == f"step {good + 1}"
    assert 0 < good < 16
    assert not message.out_of_memory

    saved = warm.checkpoints()[-1]
    warm.forget()
    fields["on_non_finite"] = "stop_at_checkpoint"
    result = trained(warm.run(make_run(model, prepared, tmp_path / "ends", **fields)))
    assert result.step == good == saved.step
    assert result.result["ended_at_checkpoint"] == good
    kept = load_file(Path(saved.path, "adapter_model.safetensors"))
    final = load_file(Path(result.path, "adapter_model.safetensors"))
    assert all((kept[name] == final[name]).all() for name in kept)


def test_exhausted_memory_is_told_apart_and_survived_and_the_end_of_input_ends_all(
    base: Path, tmp_path: Path
) -> None:
    small = prepared_data(tmp_path / "small")
    long = prepared_data(tmp_path / "long", rows=64, length=(800, 800))
    big: dict[str, Any] = {"batch_size": 64, "gradient_accumulation": 1, "max_steps": 1}
    with Trainer() as trainer:
        trained(trainer.run(make_run(base, small, tmp_path / "1")))
        pid = trainer.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        in_use = pages * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (in_use + 200 * 2**20, hard))
        message = trainer.run(make_run(base, long, tmp_path / "2", **big))
        assert isinstance(message, Failed)
        assert message.out_of_memory
        assert message.error["code"] == "out_of_memory"
        assert "batch_size" in message.error["remedy"]
        assert message.traceback is not None
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
        trainer.send(make_run(base, small, tmp_path / "3", max_steps=100_000))
        trainer.wait_for(Metrics)
        assert trainer.checked().warm
        trainer.close_input()
        trainer.process.wait(timeout=10)


def test_missing_data_and_a_missing_base_are_said_in_words(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    message = warm.run(make_run(base, tmp_path / "none", tmp_path / "1"))
    assert isinstance(message, Failed)
    assert message.error["where"].endswith("train.arrow")
    message = warm.run(make_run(tmp_path / "no-base", data, tmp_path / "2"))
    assert isinstance(message, Failed)
    assert message.error["code"] == "invalid_base_model"
    trained(warm.run(make_run(base, data, tmp_path / "3")))
