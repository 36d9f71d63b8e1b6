"""`celora plan` against real models: what it counts is what the trainer then has in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import celora
from celora.planning.architecture import architecture_of
from celora.planning.known import LLAMA_8B, LLAMA_70B
from celora.planning.memory import Architecture, estimate, optimizer_bytes, weight_bytes
from celora.planning.plan import make_plan, record
from gpu_worker.trainer.tiny_base import random_base
from models.errors import BaseModelError, SpecError
from models.queries.rollups import set_price
from models.session import transaction
from models.spec import JobSpec
from models.states import Outcome, Stage
from tests import records

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(
        tmp_path_factory.mktemp("base"), hidden=128, layers=2, heads=4, mlp=256, vocab=512
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"what is {n} plus one?", "completion": f" {n + 1}"}) + "\n"
            for n in range(200)
        )
    )
    return path


@pytest.fixture(scope="module")
def counted(base: Path) -> Architecture:
    return architecture_of(spec(base))


def spec(base: Path, **fields: Any) -> JobSpec:
    return JobSpec(**{"base_model": str(base), "dataset": "none"} | fields)


def test_parameters_are_counted_exactly(base: Path, counted: Architecture) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from gpu_worker.trainer.adapter import lora_config

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    adapted: Any = get_peft_model(model, lora_config(spec(base), model))
    assert counted.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_bytes_of_a_quantised_base_and_of_its_optimizer_are_those_of_the_real_ones(
    base: Path, counted: Architecture
) -> None:
    import torch
    from bitsandbytes.optim.adamw import AdamW8bit
    from peft import get_peft_model

    from gpu_worker.trainer.adapter import lora_config
    from gpu_worker.trainer.base_model import BaseKey, load_model
    from gpu_worker.trainer.precision import Device, precision_for

    wanted = spec(base, method="qlora")
    precision = precision_for(wanted, Device(cuda=False, bf16=True))
    model = load_model(BaseKey.of(str(base), "r", precision, trust=False))
    assert weight_bytes(wanted, counted) == pytest.approx(model_bytes(model), rel=0.02)

    adapted: Any = get_peft_model(model, lora_config(wanted, model))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer: Any = AdamW8bit(trained, lr=1e-3)  # type: ignore[no-untyped-call]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if torch.is_tensor(tensor) and not name.startswith("qmap")
    )
    assert optimizer_bytes(wanted, counted, 2) == pytest.approx(states, rel=0.02)


@pytest.mark.parametrize("fields", [{"method": "lora"}, {"method": "full"}], ids=["lora", "full"])
def test_the_bytes_of_an_adapter_and_of_32_bit_states_are_those_of_the_real_ones(
    base: Path, counted: Architecture, fields: dict[str, Any]
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from gpu_worker.trainer.adapter import lora_config

    wanted, full = spec(base, **fields), fields["method"] == "full"
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if not full:
        model = get_peft_model(model, lora_config(wanted, model))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    there = replace(counted, trainable=counted.parameters) if full else counted
    planned = {
        part.name: part.expected
        for part in estimate(wanted, there, micro_batch=1, row_tokens=8).parts
    }
    bytes_of = sum(parameter.nbytes for parameter in trained)
    assert planned["weights" if full else "adapter"] == planned["gradients"] == bytes_of
    states = sum(
        s[name].nbytes for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    )
    assert planned["optimizer"] == states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "config"),
    [
        (LLAMA_8B, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}),
        (LLAMA_70B, {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}),
    ],
    ids=["8B", "70B"],
)
def test_what_is_known_of_llama_is_counted_from_its_configuration(
    known: Architecture, config: dict[str, Any], tmp_path: Path
) -> None:
    """By hand from the published sizes."""
    told = config | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": 28_672 if known is LLAMA_70B else 14_336,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert architecture_of(spec(tmp_path)) == known


@pytest.mark.slow
def test_heads_may_be_wider_than_their_part_of_the_hidden_size(
    base: Path, counted: Architecture, tmp_path: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 2 * counted.head_width}))
    wide = architecture_of(spec(tmp_path))
    assert wide.key_value_width == 2 * counted.key_value_width


def model_bytes(model: Any) -> int:
    """Weights with what their quantisation keeps beside them."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + state.state2.absmax.nbytes
    return total


def test_a_configuration_without_weights_is_enough(
    base: Path, counted: Architecture, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    plan = celora.plan(base_model=str(tmp_path), dataset="none", max_steps=7, read_data=False)
    assert (plan.total_steps, plan.steps_from[:9]) == (7, "max_steps")
    assert plan.model == counted


def test_the_data_decides_about_steps_tokens_and_the_longest_row(base: Path, rows: Path) -> None:
    plan = celora.plan(base_model=str(base), dataset=str(rows), epochs=2, packing="off")
    assert plan.data is not None
    assert plan.total_steps == plan.data.verdict["total_steps"]
    assert plan.row_tokens == plan.data.verdict["lengths"]["max"] < 64
    assert plan.row_tokens_from == "the longest row of the data"
    assert plan.training_tokens is not None
    assert plan.training_tokens > 1000


def finished_on_cuda(base: Path, peak_bytes: int, **fields: Any) -> None:
    """A job that trained 360,000 tokens in 100 s on one of two H100."""
    records.add_gpu(0)
    records.add_gpu(1)
    with transaction() as session:
        session.execute(
            text("UPDATE gpus SET kind = 'cuda', model = 'H100', memory_bytes = 80000000000")
        )
    job_id = records.submit(base_model=str(base), evaluate=False, **fields)
    records.prepare(job_id)
    records.place()
    taken = records.claimed(job_id, Stage.TRAIN)
    result = {"seconds": 100, "trained_tokens": 360_000, "resumed_at_step": 0, "device": "H100"}
    result |= {"batch_size": 4, "peak_memory_bytes": peak_bytes}
    records.end(job_id, taken.fence, Outcome.COMPLETED, result=result)


def test_gpus_of_the_pool_hours_and_cost_from_like_jobs(base: Path, counted: Architecture) -> None:
    finished_on_cuda(base, 10**9)
    wanted = spec(base, max_steps=10, max_sequence_length=2048)
    (fit,) = make_plan(wanted, model=counted).fits
    assert (fit.device, fit.count, fit.fits, fit.micro_batch) == ("H100", 2, "yes", 16)
    assert fit.gpu_hours == pytest.approx(10 * 16 * 2048 / 3600 / 3600)
    assert "3,600 tokens/s in 1 finished" in (fit.pace or "")
    assert (fit.price_per_hour, fit.cost) == (None, None)
    with transaction() as session:
        set_price(session, "h1", 1.0)
        set_price(session, "h100", 2.5)
    (priced,) = make_plan(wanted, model=counted).fits
    assert priced.price_per_hour == 2.5  # that of the longest name that fits
    assert priced.cost == pytest.approx((fit.gpu_hours or 0) * 2.5)
    assert make_plan(spec(base, gpu_model="a100"), model=counted).fits == ()


def test_without_like_jobs_hours_come_from_others_by_size_or_by_a_rule(
    base: Path, counted: Architecture
) -> None:
    records.add_gpu(0)
    with transaction() as session:
        session.execute(text("UPDATE gpus SET kind = 'cuda', model = 'NVIDIA H100 80GB HBM3'"))
    wanted = spec(base, max_steps=10, max_sequence_length=2048)
    tokens = 10 * 16 * 2048
    (ruled,) = make_plan(wanted, model=counted).fits
    size = counted.parameters + counted.trainable
    assert ruled.gpu_hours == pytest.approx(tokens / (0.3 * 989e12 / (6 * size)) / 3600)
    assert "assumed: 30% of its published 989 TFLOPS" in (ruled.pace or "")

    finished_on_cuda(Path("/another"), 10**9)
    # It trained 3,600 tokens/s with ten times the parameters.
    with transaction() as session:
        session.execute(
            text("UPDATE jobs SET result = result || jsonb_build_object('total_parameters', :n)"),
            {"n": 10 * size},
        )
    (by_size,) = make_plan(wanted, model=counted).fits
    assert by_size.gpu_hours == pytest.approx(tokens / 36_000 / 3600)
    assert "by size, from 1 finished jobs of method lora on other bases" in (by_size.pace or "")


def test_measured_peaks_on_cuda_correct_the_activations_of_like_jobs(
    base: Path, counted: Architecture
) -> None:
    alike = spec(base, batch_size=4, max_sequence_length=2048)
    planned = estimate(alike, counted, micro_batch=4, row_tokens=2048)
    by_name = {part.name: part.expected for part in planned.parts}
    moving = by_name["activations"]
    inside = sum(by_name[n] for n in ("weights", "adapter", "gradients", "optimizer", "logits"))
    finished_on_cuda(base, round(inside + 1.5 * moving))

    plan = make_plan(alike, model=counted)
    assert (plan.correction.jobs, round(plan.correction.factor, 3)) == (1, 1.5)
    corrected = next(part for part in plan.memory.parts if part.name == "activations")
    assert corrected.expected == pytest.approx(1.5 * moving, rel=1e-3)
    # A job of another rank is not alike, and what a CPU slot measured is no GPU memory.
    assert make_plan(spec(base, rank=8), model=counted).correction.jobs == 0
    with transaction() as session:
        session.execute(text("UPDATE gpus SET kind = 'cpu'"))
    assert make_plan(alike, model=counted).correction.jobs == 0


def test_the_command_prints_parts_and_the_record_is_json(
    base: Path,
    rows: Path,
    counted: Architecture,
    celora: Callable[..., tuple[int, str, str]],
) -> None:
    records.add_gpu(0)
    code, out, err = celora("plan", "--base-model", str(base), "--dataset", str(rows))
    assert (code, err) == (0, "")
    for word in ("parameters", "weights", "activations", "steps", "overhead"):
        assert word in out
    assert "No price is set for cpu (1 thread): `celora prices set` sets one." in out
    told = json.loads(json.dumps(record(make_plan(spec(base), model=counted))))
    assert told["memory"]["parts"]["weights"]["expected_bytes"] == counted.parameters * 2
    assert told["model"]["trainable"] == counted.trainable


@pytest.mark.slow
def test_what_cannot_be_planned_is_explained(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(BaseModelError, match="configuration"):
        celora.plan(base_model=str(tmp_path), dataset="none", read_data=False)
    with pytest.raises(SpecError, match="no layer named nothing"):
        celora.plan(
            base_model=str(base), dataset="none", target_modules=("nothing",), read_data=False
        )
