"""Preference pairs in the real trainer: the held-out margin rises, the base stays clean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from gpu_worker.protocol import Evaluated, Preferences, Started
from gpu_worker.trainer.tiny_base import random_base
from models.spec import JobSpec
from tests.trainer_driver import Trainer, make_run, trained
from training_data.prepare import prepare

pytestmark = pytest.mark.torch

PAIRS = Path(__file__).parents[2] / "examples" / "smart_home_preferences" / "pairs.jsonl"
DPO: dict[str, Any] = {"method": "dpo", "max_steps": 8, "eval_generate_rows": 2}
SHORT: dict[str, Any] = {"eval_max_new_tokens": 4, "evaluate": True}
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def pairs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = JobSpec(base_model=str(base), dataset=str(PAIRS), method="dpo", validation_fraction=0.1)
    folder = tmp_path_factory.mktemp("pairs")
    return prepare(spec, tokenizer_path=str(base), scratch=folder).folder


@pytest.fixture(scope="module")
def process() -> Any:
    with Trainer() as trainer:
        yield trainer


@pytest.fixture
def warm(process: Trainer) -> Trainer:
    process.forget()
    return process


def evaluated(message: Any) -> Preferences:
    assert isinstance(message, Evaluated), message
    assert message.preferences is not None
    return message.preferences


def reward_margin(base: Path, adapter: str, rows: list[dict[str, Any]], beta: float) -> float:
    """By the paper's formula; nothing of ours computes it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(plain, adapter).eval()

    @torch.no_grad()
    def log_probability(ids: list[int], labels: list[int]) -> float:
        logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return float(sum(logs[i, token] for i, token in enumerate(labels[1:]) if token != -100))

    def apart() -> float:
        return sum(
            log_probability(row["input_ids"], row["labels"])
            - log_probability(row["rejected_ids"], row["rejected_labels"])
            for row in rows
        )

    tuned = apart()
    with model.disable_adapter():
        return beta * (tuned - apart()) / len(rows)


def test_the_margin_on_held_out_pairs_rises(
    warm: Trainer, base: Path, pairs: Path, tmp_path: Path
) -> None:
    run = make_run(base, pairs, tmp_path / "job", eval_every_steps=4, **DPO, **SHORT)
    result = trained(warm.run(run))
    card = Path(result.path, "README.md").read_text()
    assert "| beta | 0.1 |" in card
    assert "| dropout | 0 |" in card
    losses = warm.values("train_loss")
    assert losses[1] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are one yet
    assert losses[8] < losses[1] - 0.05
    for name in REWARDS:
        assert set(warm.values(name)) == set(range(1, 9))
    margins = warm.values("rewards/margins")
    for step, margin in margins.items():
        both = warm.values("rewards/chosen")[step] - warm.values("rewards/rejected")[step]
        assert margin == pytest.approx(both, abs=1e-5)
    held_out = warm.values("eval_rewards/margins")
    assert 0 < held_out[4] < held_out[8]
    assert warm.values("eval_loss")[8] < math.log(2)

    told = evaluated(warm.run(run.model_copy(update={"stage": "evaluate"})))
    assert (told.base.reward_margin, told.base.reward_accuracy) == (0, None)
    assert told.tuned.reward_margin == pytest.approx(held_out[8], rel=1e-4)
    assert (told.tuned.reward_accuracy or 0) > 0.5
    assert told.tuned.accuracy >= told.base.accuracy
    assert told.pairs > 20


@pytest.mark.slow
def test_the_margin_is_the_papers(warm: Trainer, base: Path, pairs: Path, tmp_path: Path) -> None:
    run = make_run(base, pairs, tmp_path / "job", **DPO, **SHORT)
    result = trained(warm.run(run))
    told = evaluated(warm.run(run.model_copy(update={"stage": "evaluate"})))
    with pa.OSFile(str(pairs / "eval.arrow")) as file, pa.ipc.open_stream(file) as stream:
        rows = stream.read_all().to_pylist()
    assert told.pairs == len(rows)
    counted = reward_margin(base, result.path, rows, beta=0.1)
    assert told.tuned.reward_margin == pytest.approx(counted, rel=1e-3)


def test_the_base_is_clean_after_it_and_a_lora_job_trains_on_it_as_ever(
    warm: Trainer, base: Path, pairs: Path, tmp_path: Path
) -> None:
    # A pair's chosen side is a supervised row as well.
    plain = make_run(base, pairs, tmp_path / "before", max_steps=3)
    before = trained(warm.run(plain)).digest
    trained(warm.run(make_run(base, pairs, tmp_path / "dpo", gradient_checkpointing="on", **DPO)))
    after = trained(warm.run(plain.model_copy(update={"output_path": str(tmp_path / "after")})))
    assert warm.checked().warm
    assert warm.checked().differences == []
    assert after.digest == before


@pytest.mark.parametrize("held_as", ["lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_a_run_resumes_to_the_bit(
    warm: Trainer, base: Path, pairs: Path, tmp_path: Path, held_as: str
) -> None:
    fields = DPO | {"dpo_base": held_as, "max_steps": 5, "checkpoint_every_steps": 1}
    whole = trained(warm.run(make_run(base, pairs, tmp_path / "all", **fields)))
    names = ("train_loss", *REWARDS)
    curves, saved = {name: warm.values(name) for name in names}, warm.checkpoints()[1]
    warm.forget()
    rest = make_run(base, pairs, tmp_path / "rest", resume_from=saved.path, **fields)
    result = trained(warm.run(rest))
    assert warm.all(Started)[-1].start_step == saved.step == 2
    for name in names:
        assert warm.values(name) == {s: v for s, v in curves[name].items() if s > 2}
    assert (result.digest, result.trained_tokens) == (whole.digest, whole.trained_tokens)


@pytest.mark.slow
def test_half_the_micro_batch_with_twice_the_accumulation_is_the_same_run(
    warm: Trainer, base: Path, pairs: Path, tmp_path: Path
) -> None:
    """As after exhausted memory."""
    trained(warm.run(make_run(base, pairs, tmp_path / "4", **DPO)))
    losses = warm.values("train_loss")
    warm.forget()
    smaller = make_run(base, pairs, tmp_path / "2", **DPO)
    smaller = smaller.model_copy(update={"batch_size": 1, "gradient_accumulation": 4})
    trained(warm.run(smaller))
    assert warm.values("train_loss") == pytest.approx(losses, abs=1e-5)


@pytest.mark.slow
def test_an_adapter_to_begin_with_is_the_reference_as_well(
    warm: Trainer, base: Path, pairs: Path, tmp_path: Path
) -> None:
    first = trained(
        warm.run(make_run(base, pairs, tmp_path / "first", max_steps=10, learning_rate=1e-2))
    )
    warm.forget()
    begins = DPO | {"after": "ftjob-first", "start_from_adapter": True, "checkpoint_every_steps": 4}
    run = make_run(base, pairs, tmp_path / "next", start_adapter_path=first.path, **begins, **SHORT)
    whole = trained(warm.run(run))
    losses, saved = warm.values("train_loss"), warm.checkpoints()[0]
    assert losses[1] == pytest.approx(math.log(2), abs=1e-4)
    here = evaluated(warm.run(run.model_copy(update={"stage": "evaluate"})))
    assert here.tuned.reward_margin > 0
    assert here.base.reward_margin != 0  # the base is not the reference now

    # After a loss: from the checkpoint, and evaluated by a process that did not train.
    warm.forget()
    again = run.model_copy(update={"output_path": str(tmp_path / "x"), "resume_from": saved.path})
    assert trained(warm.run(again)).digest == whole.digest
    assert warm.values("train_loss") == {s: v for s, v in losses.items() if s > 4}
    trained(warm.run(make_run(base, pairs, tmp_path / "other", max_steps=1)))
    elsewhere = run.model_copy(update={"stage": "evaluate", "adapter_path": whole.path})
    there = evaluated(warm.run(elsewhere))
    for one, other in ((there.base, here.base), (there.tuned, here.tuned)):
        assert one.model_dump() == pytest.approx(other.model_dump(), rel=1e-4)
    assert warm.checked().differences == []
