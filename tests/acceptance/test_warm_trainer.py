"""The real trainer process over real pipes: warm equals cold, clean stays clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gpu_worker.protocol import Log, Metrics, Replace, Started, Stop, Trained
from tests.trainer_driver import Trainer, make_run, prepared_data, trained

pytestmark = pytest.mark.torch

MIXED: list[dict[str, Any]] = [
    {"method": "lora", "rank": 4},
    {"method": "lora", "rank": 8, "gradient_checkpointing": "on"},
    {"method": "lora", "rank": 4, "target_modules": "auto"},
    {"method": "lora", "rank": 16, "optimizer": "adamw_bnb_8bit"},
    {"method": "qlora", "rank": 4},
    {"method": "qlora", "rank": 8, "gradient_checkpointing": "on"},
    {"method": "qlora", "rank": 4, "target_modules": ("q_proj", "embed_tokens")},
    {"method": "lora", "rank": 4},
]


def test_a_warm_adapter_is_bit_identical_to_a_cold_one_and_full_gets_its_own_process(
    base: Path, data: Path, tmp_path: Path
) -> None:
    with Trainer() as trainer:
        cold = trained(trainer.run(make_run(base, data, tmp_path / "cold")))
        losses = trainer.values("train_loss")
        assert not trainer.checked().warm
        for n, fields in enumerate(MIXED[1:4]):
            trained(trainer.run(make_run(base, data, tmp_path / f"other{n}", **fields)))
        trainer.forget()
        again = trained(trainer.run(make_run(base, data, tmp_path / "warm")))
        assert trainer.checked().warm
        assert trainer.checked().differences == []
        assert again.digest == cold.digest
        assert weights(again) == weights(cold)
        assert trainer.values("train_loss") == losses
        assert len(losses) == 4

        message = trainer.run(make_run(base, data, tmp_path / "full", method="full"))
        assert isinstance(message, Replace)
        assert "full" in message.why
        assert trainer.process.wait(timeout=30) == 0


def test_mixed_jobs_find_the_base_clean(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    digests = _run_all(warm, MIXED, base, data, tmp_path)
    assert digests[0] == digests[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_mixed_jobs_find_the_base_clean_and_memory_flat(
    base: Path, data: Path, tmp_path: Path
) -> None:
    jobs = [MIXED[n % len(MIXED)] for n in range(50)]
    with Trainer() as trainer:
        digests = _run_all(trainer, jobs[:16], base, data, tmp_path / "first")
        before = trainer.rss_bytes()
        digests += _run_all(trainer, jobs[16:], base, data, tmp_path / "second")
        grown = trainer.rss_bytes() - before
    assert digests == [digests[n % len(MIXED)] for n in range(50)]
    assert grown < 40 * 2**20, f"34 jobs grew the process by {grown} bytes"


def _run_all(
    trainer: Trainer, jobs: list[dict[str, Any]], base: Path, data: Path, folder: Path
) -> list[str]:
    digests = []
    for n, fields in enumerate(jobs):
        message = trainer.run(make_run(base, data, folder / str(n), **fields))
        digests.append(trained(message).digest)
        assert trainer.checked().differences == []
    return digests


DIRTY = """
from gpu_worker.trainer import base_model
base_model.Base.restore = lambda self, used: used.unload()
from gpu_worker.trainer.__main__ import main
main()
"""


def test_a_dirtied_base_is_replaced(base: Path, data: Path, tmp_path: Path) -> None:
    with Trainer(command=("-c", DIRTY)) as trainer:
        trained(trainer.run(make_run(base, data, tmp_path / "1")))
        message = trainer.run(make_run(base, data, tmp_path / "2"))
        assert isinstance(message, Replace)
        assert trainer.checked().differences
        assert "requires_grad was True, is False" in message.why
        assert trainer.process.wait(timeout=30) == 0


# The real process, which says after each command how many of its trainers are left in memory.
COUNTING = """
import gc
from gpu_worker.trainer import main as process
from gpu_worker.trainer.__main__ import main
from gpu_worker.trainer.job_trainer import JobRecords

class Counting(process.Process):
    def serve(self, command):
        super().serve(command)
        gc.collect()
        left = sum(isinstance(one, JobRecords) for one in gc.get_objects())
        self._channel.log(f"trainers left: {left}")

process.Process = Counting
main()
"""


@pytest.mark.slow
def test_an_idle_process_holds_no_optimizer(base: Path, data: Path, tmp_path: Path) -> None:
    with Trainer(command=("-c", COUNTING)) as trainer:
        for number in ("1", "2"):
            trained(trainer.run(make_run(base, data, tmp_path / number, eval_every_steps=2)))
        assert [log.line for log in trainer.all(Log) if "left" in log.line][:1] == [
            "trainers left: 0"
        ]


def test_every_step_is_recorded(warm: Trainer, base: Path, data: Path, tmp_path: Path) -> None:
    run = make_run(base, data, tmp_path, max_steps=7, log_every_steps=3, eval_every_steps=2)
    result = trained(warm.run(run))
    started = warm.all(Started)[-1]
    assert (started.start_step, started.total_steps) == (0, 7)
    assert list(warm.values("train_loss")) == [1, 2, 3, 4, 5, 6, 7]
    for name in (
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "step_seconds",
        "token_accuracy",
        "epoch",
        "memory_bytes",
    ):
        assert list(warm.values(name)) == [1, 3, 6, 7], name
    assert list(warm.values("eval_loss")) == [2, 4, 6]
    assert list(warm.values("eval_token_accuracy")) == [2, 4, 6]
    tokens = [m.trained_tokens for m in warm.all(Metrics)]
    assert tokens == sorted(tokens)
    assert tokens[-1] == result.trained_tokens == rows_tokens(data, result)
    assert result.result["versions"]["trl"]
    assert result.result["seed"] == 42


def rows_tokens(data: Path, result: Trained) -> int:
    """Tokens of a run of less than an epoch lie between those of its shortest and longest rows."""
    with pa.OSFile(str(data / "train.arrow")) as file, pa.ipc.open_stream(file) as stream:
        lengths = sorted(len(row) for row in stream.read_all().column("input_ids").to_pylist())
    rows = result.step * 4
    assert sum(lengths[:rows]) <= result.trained_tokens <= sum(lengths[-rows:])
    return result.trained_tokens


def test_held_out_losses_do_not_change_the_training(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    plain = trained(warm.run(make_run(base, data, tmp_path / "plain")))
    watched = trained(warm.run(make_run(base, data, tmp_path / "eval", eval_every_steps=1)))
    assert watched.digest == plain.digest


def test_packed_rows_are_kept_apart(warm: Trainer, base: Path, tmp_path: Path) -> None:
    """One step over the same rows has the same loss packed and not packed."""
    fields: dict[str, Any] = {
        "max_steps": 1,
        "dropout": 0,
        "batch_size": 8,
        "gradient_accumulation": 8,
    }
    plain = prepared_data(tmp_path / "plain", rows=32)
    packs = prepared_data(tmp_path / "packed", rows=32, packed_to=128)
    trained(warm.run(make_run(base, plain, tmp_path / "1", **fields)))
    apart = warm.values("train_loss")[1]
    warm.forget()
    result = trained(warm.run(make_run(base, packs, tmp_path / "2", **fields)))
    assert warm.values("train_loss")[1] == pytest.approx(apart, abs=2e-6)
    # Dense attention over a whole batch of packs would cost the square of its length.
    assert (result.result["batch_size"], result.result["gradient_accumulation"]) == (1, 64)


def test_a_late_stop_does_not_reach_the_next_run(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    trained(warm.run(make_run(base, data, tmp_path / "1")))
    warm.send(Stop(reason="cancel"))
    trained(warm.run(make_run(base, data, tmp_path / "2")))


def test_what_is_saved_names_the_base_and_no_path(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    result = trained(warm.run(make_run(base, data, tmp_path)))
    folder = Path(result.path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/base"
    assert config["revision"] == "0" * 40
    card = (folder / "README.md").read_text()
    for text in ("base_model: tiny/base", "0" * 40, "sha256:feed", "seed | 42", "trl"):
        assert text in card
    assert str(base.parent) not in card + json.dumps(config)
    assert sum(p.stat().st_size for p in folder.iterdir()) == result.size_bytes


def weights(result: Trained) -> bytes:
    return Path(result.path, "adapter_model.safetensors").read_bytes()
