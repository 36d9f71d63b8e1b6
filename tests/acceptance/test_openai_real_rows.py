"""OpenAI's own client against the real server, with the real trainer, on real rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.api_server import key_for
from tests.openai_jobs import api, finish, pairs
from tests.scripted_jobs import FAST, start_gpu_worker
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(600)]


def test_a_job_on_real_rows(stack: Stack, shared_data: Path, tmp_path: Path) -> None:
    """The whole way with the real trainer: GSM8K as chats, uploaded, trained on, evaluated."""
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(tmp_path / "tiny-llama")
    stack.start("dispatcher", **FAST)
    stack.start("cpu-worker", **FAST)
    start_gpu_worker(stack, 1, **FAST)
    lines = (shared_data / "gsm8k-train.jsonl").read_text().splitlines()[:160]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in map(json.loads, lines)
    ]
    content, validation = (
        "\n".join(map(json.dumps, part)).encode() for part in (chats[:150], chats[150:])
    )
    with (
        api(stack, CELORA_MODEL_ALIASES=f"tiny={base}") as url,
        OpenAI(base_url=url, api_key=key_for("acme")) as client,
    ):
        file = client.files.create(file=("gsm8k.jsonl", content), purpose="fine-tune")
        held_out = client.files.create(file=("valid.jsonl", validation), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            validation_file=held_out.id,
            suffix="gsm8k",
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {
                        "n_epochs": 1,
                        "batch_size": 8,
                        "learning_rate_multiplier": 50,
                    }
                },
            },
            extra_body={
                "celora": {
                    "max_sequence_length": 512,
                    "checkpoint_every_steps": 10,
                    "log_every_steps": 1,
                    "eval_generate_rows": 2,
                    "eval_max_new_tokens": 8,
                }
            },
        )
        done = finish(stack, client, job.id, seconds=300)
        assert done.status == "succeeded", done.error
        assert done.trained_tokens
        steps: list[Any] = [
            event.data
            for event in client.fine_tuning.jobs.list_events(job.id)
            if event.type == "metrics"
        ]
        newest, oldest = ([step["train_loss"] for step in part] for part in (steps[:5], steps[-5:]))
        assert sum(newest) < sum(oldest)
        (last, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
        assert last.metrics.valid_loss == last.metrics.full_valid_loss
        assert last.metrics.valid_loss is not None
        assert 0 <= (last.metrics.full_valid_mean_token_accuracy or 0) <= 1
        assert last.metrics.valid_mean_token_accuracy is not None
        table = client.files.content(done.result_files[0]).text
        assert table.startswith("step,train_loss,train_accuracy,valid_loss")
        assert [row["step"] for row in csv.DictReader(io.StringIO(table)) if row["valid_loss"]]
        _pairs_are_moved_apart(stack, client)


def _pairs_are_moved_apart(stack: Stack, client: OpenAI) -> None:
    """Preference pairs, uploaded and trained on with method dpo."""
    file = client.files.create(file=("pairs.jsonl", pairs()), purpose="fine-tune")
    numbers = {"batch_size": 4, "learning_rate_multiplier": 200, "beta": 0.1}
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        method={"type": "dpo", "dpo": {"hyperparameters": numbers}},  # type: ignore[arg-type]
        extra_body={
            "celora": {
                "max_steps": 8,
                "eval_every_steps": 4,
                "validation_fraction": 0.1,
                "eval_generate_rows": 2,
                "eval_max_new_tokens": 4,
            }
        },
    )
    done = finish(stack, client, job.id, seconds=300)
    assert done.status == "succeeded", done.error
    steps: list[Any] = [
        event.data
        for event in client.fine_tuning.jobs.list_events(job.id)
        if event.type == "metrics"
    ]
    margins = {step["step"]: step.get("eval_rewards/margins") for step in steps}
    assert 0 < margins[4] < margins[8]
