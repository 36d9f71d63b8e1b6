"""The real trainer process over real pipes: warm equals cold, clean stays clean, stops resume."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from gpu_worker.protocol import (
    Activity,
    BaseChecked,
    CheckpointSaved,
    Evaluated,
    Failed,
    Metrics,
    Replace,
    Started,
    Stop,
    Stopped,
    Trained,
)
from gpu_worker.trainer.tiny_base import random_base
from tests.trainer_driver import Trainer, make_run, prepared_data

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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Trainer]:
    """One warm process for all tests that leave it in order: starting one takes seconds."""
    with Trainer() as trainer:
        yield trainer


@pytest.fixture
def warm(shared: Trainer) -> Trainer:
    shared.forget()
    return shared


def trained(message: Any) -> Trained:
    assert isinstance(message, Trained), message
    return message


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


def test_full_trains_in_a_fresh_process_resumes_to_the_bit_and_leaves(
    base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"method": "full", "max_steps": 5, "checkpoint_every_steps": 2}
    with Trainer() as trainer:
        whole = trained(trainer.run(make_run(base, data, tmp_path / "whole", **fields)))
        losses, saved = trainer.values("train_loss"), trainer.checkpoints()
        assert trainer.process.wait(timeout=30) == 0
    assert whole.kind == "model"
    assert whole.result["trainable_parameters"] == whole.result["total_parameters"]
    before = load_file(base / "model.safetensors")
    after = load_file(Path(whole.path, "model.safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert {name for name in before if name.endswith("proj.weight")} <= changed
    assert json.loads(Path(whole.path, "config.json").read_text())["use_cache"] is True

    with Trainer() as trainer:
        run = make_run(base, data, tmp_path / "rest", resume_from=saved[0].path, **fields)
        rest = trained(trainer.run(run))
    assert trainer.values("train_loss") == {s: v for s, v in losses.items() if s > saved[0].step}
    assert rest.digest == whole.digest


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
        "token_accuracy",
        "epoch",
        "memory_bytes",
    ):
        assert list(warm.values(name)) == [1, 3, 6, 7], name
    assert list(warm.values("eval_loss")) == [2, 4, 6]
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


RESUMABLE: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "lora", "optimizer": "adamw_bnb_8bit", "rank": 16},
    {"method": "qlora", "rank": 16},
]


@pytest.mark.parametrize("fields", RESUMABLE, ids=lambda f: f"{f['method']}-{f.get('optimizer')}")
@pytest.mark.parametrize("packed", [None, 96], ids=["rows", "packs"])
def test_any_checkpoint_resumes_to_the_bit(
    warm: Trainer, base: Path, tmp_path: Path, fields: dict[str, Any], packed: int | None
) -> None:
    """Ten steps over two and a half epochs; from every other step to the end again."""
    prepared = prepared_data(tmp_path / "data", rows=60 if packed else 15, packed_to=packed)
    size: dict[str, Any] = {"batch_size": 1 if packed else 2} | {"max_steps": 10, **fields}
    whole = trained(
        warm.run(make_run(base, prepared, tmp_path / "all", checkpoint_every_steps=1, **size))
    )
    losses = warm.values("train_loss")
    saved = {c.step: c for c in warm.checkpoints()}
    assert sorted(saved) == list(range(1, 10))
    for step in range(1, 10, 2):
        warm.forget()
        run = make_run(
            base, prepared, tmp_path / f"from{step}", resume_from=saved[step].path, **size
        )
        result = trained(warm.run(run))
        assert warm.all(Started)[-1].start_step == step
        assert warm.values("train_loss") == {s: v for s, v in losses.items() if s > step}
        assert result.digest == whole.digest
        assert result.trained_tokens == whole.trained_tokens


def test_signals_are_ignored_and_a_killed_run_goes_on_from_its_checkpoint(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"max_steps": 400, "checkpoint_every_steps": 3}
    with Trainer() as killed:
        killed.send(make_run(base, data, tmp_path / "killed", **fields))
        killed.wait_for(Metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            killed.process.send_signal(number)
        step = killed.all(Metrics)[-1].step
        saved = killed.wait_for(CheckpointSaved, matching=lambda c: c.step > step + 3)
        killed.process.kill()
        killed.process.wait()
        killed.wait_for_end()
    losses = killed.values("train_loss")
    run = make_run(base, data, tmp_path / "next", resume_from=saved.path, **fields)
    warm.send(run)
    warm.wait_for(Metrics, matching=lambda m: m.step >= max(losses, default=0))
    warm.send(Stop(reason="cancel"))
    warm.wait_for(Stopped)
    both = losses.keys() & warm.values("train_loss").keys()
    assert {s: losses[s] for s in both} == {s: warm.values("train_loss")[s] for s in both}


def test_a_smaller_micro_batch_goes_on_with_the_same_rows(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    """As after exhausted memory: half the micro-batch, twice the accumulation."""
    fields: dict[str, Any] = {"dropout": 0, "checkpoint_every_steps": 2}
    whole = trained(warm.run(make_run(base, data, tmp_path / "whole", **fields)))
    losses, saved = warm.values("train_loss"), warm.checkpoints()[0]
    warm.forget()
    run = make_run(base, data, tmp_path / "rest", resume_from=saved.path, **fields)
    smaller = run.model_copy(update={"batch_size": 1, "gradient_accumulation": 4})
    assert trained(warm.run(smaller)).trained_tokens == whole.trained_tokens
    rest = warm.values("train_loss")
    assert rest == pytest.approx({s: losses[s] for s in rest}, abs=1e-5)
    assert list(rest) == [3, 4]


def test_a_stop_writes_a_checkpoint_from_which_the_run_goes_on(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    size: dict[str, Any] = {"max_steps": 60, "log_every_steps": 50}
    whole = trained(warm.run(make_run(base, data, tmp_path / "whole", **size)))
    warm.forget()
    warm.send(make_run(base, data, tmp_path / "stopped", **size))
    warm.wait_for(Metrics)
    warm.send(Stop(reason="pause"))
    stopped = warm.wait_for(Stopped)
    assert stopped.reason == "pause"
    assert stopped.checkpoint_step == stopped.step
    assert 0 < stopped.step < 60
    assert not list((tmp_path / "stopped" / "checkpoints").glob(".*"))
    saved = warm.checkpoints()[-1]
    assert {"training_args.bin", "README.md"}.isdisjoint(p.name for p in Path(saved.path).iterdir())
    run = make_run(base, data, tmp_path / "rest", resume_from=saved.path, **size)
    assert trained(warm.run(run)).digest == whole.digest


def test_a_cancel_ends_the_run_at_once_and_leaves_no_checkpoint(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    warm.send(make_run(base, data, tmp_path / "job", max_steps=10_000))
    warm.wait_for(Metrics)
    warm.send(Stop(reason="cancel"))
    stopped = warm.wait_for(Stopped)
    assert (stopped.reason, stopped.checkpoint_step) == ("cancel", None)
    assert not (tmp_path / "job" / "checkpoints").exists()
    trained(warm.run(make_run(base, data, tmp_path / "next")))
    assert warm.checked().warm
    assert warm.checked().differences == []


def test_a_late_stop_does_not_reach_the_next_run(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    trained(warm.run(make_run(base, data, tmp_path / "1")))
    warm.send(Stop(reason="cancel"))
    trained(warm.run(make_run(base, data, tmp_path / "2")))


def test_a_torn_checkpoint_is_refused_in_words(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    trained(warm.run(make_run(base, data, tmp_path / "1", checkpoint_every_steps=2)))
    saved = Path(warm.checkpoints()[0].path)
    with (saved / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    message = warm.run(make_run(base, data, tmp_path / "2", resume_from=str(saved)))
    assert isinstance(message, Failed)
    assert "optimizer.pt" in message.error["message"]
    assert message.error["remedy"]


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


def test_the_tuned_model_is_evaluated_where_it_was_trained_and_elsewhere(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "method": "qlora",
        "evaluate": True,
        "eval_generate_rows": 4,
        "eval_max_new_tokens": 8,
    }
    run = make_run(base, data, tmp_path / "job", **fields)
    result = trained(warm.run(run))
    evaluate = run.model_copy(update={"stage": "evaluate", "adapter_path": result.path})
    here = warm.run(evaluate)
    assert isinstance(here, Evaluated)
    checks = len(warm.all(BaseChecked))
    assert here.tuned.loss != here.base.loss

    trained(warm.run(make_run(base, data, tmp_path / "other", method="qlora")))
    assert warm.checked().differences == []
    elsewhere = warm.run(evaluate.model_copy(update={"fence": 2}))
    assert isinstance(elsewhere, Evaluated)
    assert len(warm.all(BaseChecked)) == checks + 2
    for name in ("base", "tuned"):
        one, two = getattr(here, name), getattr(elsewhere, name)
        assert one.model_copy(update={"seconds": 0}) == two.model_copy(update={"seconds": 0})
    again = trained(warm.run(make_run(base, data, tmp_path / "again", **fields)))
    assert warm.checked().differences == []
    assert again.digest == result.digest


def test_an_evaluation_stops_in_the_middle(warm: Trainer, base: Path, tmp_path: Path) -> None:
    data = prepared_data(tmp_path / "data", eval_rows=300)
    fields: dict[str, Any] = {"evaluate": True, "eval_generate_rows": 300}
    run = make_run(base, data, tmp_path / "job", **fields, eval_max_new_tokens=400)
    trained(warm.run(run))
    warm.send(run.model_copy(update={"stage": "evaluate"}))
    warm.wait_for(Activity)
    warm.send(Stop(reason="cancel"))
    assert isinstance(warm.wait_for(Stopped, Evaluated), Stopped)
    trained(warm.run(make_run(base, data, tmp_path / "next")))
    assert warm.checked().warm
    assert warm.checked().differences == []


def test_a_full_job_is_evaluated_against_its_base(base: Path, data: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"evaluate": True, "eval_generate_rows": 2, "eval_max_new_tokens": 4}
    run = make_run(base, data, tmp_path, method="full", **fields)
    with Trainer() as trainer:
        result = trained(trainer.run(run))
        evaluate = run.model_copy(update={"stage": "evaluate", "adapter_path": result.path})
        here = trainer.run(evaluate)
        assert isinstance(here, Evaluated)
        assert trainer.process.wait(timeout=30) == 0
    with Trainer() as trainer:
        elsewhere = trainer.run(evaluate)
        assert isinstance(elsewhere, Evaluated)
        assert trainer.process.wait(timeout=30) == 0
    assert here.tuned.loss != here.base.loss
    assert elsewhere.tuned.loss == pytest.approx(here.tuned.loss, abs=1e-6)
    assert elsewhere.base.loss == here.base.loss


def weights(result: Trained) -> bytes:
    return Path(result.path, "adapter_model.safetensors").read_bytes()
