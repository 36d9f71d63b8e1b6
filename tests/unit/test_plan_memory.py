"""The memory a job is planned with: known anchors, and how it moves with what is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celora.planning.known import LLAMA_8B, LLAMA_70B
from celora.planning.memory import (
    Architecture,
    Memory,
    estimate,
    head_bytes,
    largest_micro_batch,
    optimizer_bytes,
    weight_bytes,
)
from celora.planning.paces import pace_on
from celora.planning.plan import on_device
from models.spec import JobSpec


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**{"base_model": "m", "dataset": "d"} | fields)


def memory(model: Architecture, micro_batch: int = 1, **fields: Any) -> Memory:
    wanted = spec(**fields)
    if wanted.method == "full":
        model = replace(model, trainable=model.parameters)
    return estimate(wanted, model, micro_batch=micro_batch, row_tokens=2048)


def part(memory: Memory, name: str) -> float:
    return next(part.expected for part in memory.parts if part.name == name)


def test_8b_qlora_fits_16_gb() -> None:
    planned = memory(LLAMA_8B, method="qlora", micro_batch=4)
    assert part(planned, "weights") / 1e9 == pytest.approx(5.7, abs=0.05)
    assert planned.high < 16e9


def test_70b_qlora_fits_80_gb() -> None:
    planned = memory(LLAMA_70B, method="qlora", micro_batch=4)
    assert part(planned, "weights") / 1e9 == pytest.approx(39.5, abs=0.1)
    assert planned.high < 80e9


@pytest.mark.parametrize(("pure", "gigabytes"), [(False, 128), (True, 64)])
def test_8b_full_needs_16_or_8_bytes_a_parameter(pure: bool, gigabytes: float) -> None:  # noqa: FBT001 (a parameter of the test)
    planned = memory(LLAMA_8B, method="full", bf16_pure=pure)
    states = sum(part(planned, name) for name in ("weights", "gradients", "optimizer"))
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_full_training_in_fp32_has_copies_of_its_weights_while_it_reads() -> None:
    names = {one.name for one in memory(LLAMA_8B, method="full").parts}
    assert "casts" in names
    assert part(memory(LLAMA_8B, method="full"), "casts") / 1e9 == pytest.approx(15, abs=0.1)
    for fields in ({"bf16_pure": True}, {"precision": "fp32"}):
        whole = memory(LLAMA_8B, method="full", **fields)
        assert "casts" not in {one.name for one in whole.parts}


def test_an_adapter_of_a_16_bit_base_is_trained_in_32_bits() -> None:
    planned = memory(LLAMA_8B, method="lora")
    assert part(planned, "weights") == LLAMA_8B.parameters * 2
    assert part(planned, "adapter") == LLAMA_8B.trainable * 4
    assert part(planned, "optimizer") == LLAMA_8B.trainable * 8


def test_8_bit_states_take_two_bytes_and_small_tensors_eight() -> None:
    wanted = spec(method="qlora")
    assert optimizer_bytes(wanted, LLAMA_8B, 2) == pytest.approx(41_943_040 * 2, rel=0.02)
    small = replace(LLAMA_8B, trainable=1000, small_trainable=1000)
    assert optimizer_bytes(wanted, small, 2) == 8000


def test_the_head_takes_a_tile_and_not_the_vocabulary() -> None:
    wanted = spec(method="qlora")
    few, many = (head_bytes(wanted, LLAMA_8B, tokens, 2) for tokens in (8192, 16_384))
    assert few < 0.1 * 8192 * LLAMA_8B.vocabulary * 4
    assert many - few == 8192 * LLAMA_8B.hidden * 4  # a tile stays a tile


@pytest.mark.parametrize(
    ("more", "than"),
    [
        ({"gradient_checkpointing": "off"}, {}),
        ({"attention": "eager"}, {"attention": "sdpa"}),
        ({"dropout": 0.1}, {"dropout": 0}),
        ({"precision": "fp32"}, {"precision": "bf16"}),
    ],
)
def test_what_needs_more(more: dict[str, Any], than: dict[str, Any]) -> None:
    # Without the evaluation, whose keys and values may need more than a small micro-batch.
    asked, before = (memory(LLAMA_8B, evaluate=False, **fields) for fields in (more, than))
    assert asked.expected > before.expected


def test_low_expected_high_are_in_order_and_parts_add_up() -> None:
    for method in ("lora", "qlora", "full"):
        planned = memory(LLAMA_8B, method=method)
        assert planned.low <= planned.expected <= planned.high
        assert planned.expected == sum(one.expected for one in planned.parts)


def test_the_micro_batch_that_fits_keeps_the_effective_batch() -> None:
    wanted = spec(method="qlora", batch_size=8, gradient_accumulation=3)
    sizes = [
        largest_micro_batch(wanted, LLAMA_8B, row_tokens=2048, available_bytes=gigabytes * 1e9)
        for gigabytes in (8, 12, 16, 24, 200)
    ]
    assert sizes[0] is None
    assert sizes[-1] == 24
    assert all(24 % size == 0 for size in sizes if size)
    found = [size for size in sizes if size]
    assert found == sorted(found)


def test_measured_peaks_correct_the_activations_alone() -> None:
    wanted = spec(method="lora")
    once = estimate(wanted, LLAMA_8B, micro_batch=4, row_tokens=2048)
    twice = estimate(wanted, LLAMA_8B, micro_batch=4, row_tokens=2048, correction=2)
    assert part(twice, "activations") == 2 * part(once, "activations")
    assert part(twice, "weights") == part(once, "weights")


def test_a_cpu_computes_in_fp32_and_recomputes_nothing() -> None:
    assert on_device(spec(), "cuda") == spec()
    there = on_device(spec(), "cpu")
    assert (there.precision, there.gradient_checkpointing) == ("fp32", "off")
    assert on_device(spec(method="qlora"), "cpu").precision == "auto"
    assert on_device(spec(method="full"), "cpu").precision == "fp32"
    assert on_device(spec(method="full", bf16_pure=True), "cpu").precision == "auto"
    assert weight_bytes(there, LLAMA_8B, 4) == LLAMA_8B.parameters * 4


@pytest.mark.parametrize("held_as", ["lora", "qlora"])
def test_dpo_reads_two_sequences_a_pair_and_its_reference(held_as: str) -> None:
    pairs = memory(LLAMA_8B, 4, method="dpo", dpo_base=held_as)
    rows = memory(LLAMA_8B, 8, method=held_as, dropout=0)
    for name in ("weights", "adapter", "gradients", "optimizer", "activations", "logits"):
        assert part(pairs, name) == part(rows, name)
    assert 0 < part(pairs, "reference") < 0.5 * part(pairs, "activations")
    assert pairs.precision == rows.precision


@pytest.mark.parametrize(
    ("device", "tokens_per_second"),
    [
        ("NVIDIA H100 80GB HBM3", 0.3 * 989e12 / 6 / 8.072e9),
        ("NVIDIA A100-SXM4-80GB", 0.3 * 312e12 / 6 / 8.072e9),
        ("NVIDIA L40S", 0.3 * 362e12 / 6 / 8.072e9),
        ("NVIDIA L4", 0.3 * 121e12 / 6 / 8.072e9),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu (2 threads)", None),
    ],
)
def test_a_pace_by_rule_of_thumb(device: str, tokens_per_second: float | None) -> None:
    pace = pace_on(device, spec(method="lora"), LLAMA_8B, (), ())
    if tokens_per_second is None:
        assert pace is None
    else:
        assert pace is not None
        assert pace.tokens_per_second == pytest.approx(tokens_per_second, rel=0.01)
