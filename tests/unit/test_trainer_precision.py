"""What a job's precision means on which device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu_worker.trainer.precision import Device, precision_for
from models.errors import SetupError, SpecError
from models.spec import JobSpec

CPU = Device(cuda=False, bf16=True)
TURING = Device(cuda=True, bf16=False)
HOPPER = Device(cuda=True, bf16=True, flash=("flash_attention_3", "flash_attention_2"))


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"base_model": "a", "dataset": "b"} | fields)


@pytest.mark.parametrize(
    ("fields", "device", "words"),
    [
        ({"method": "lora"}, CPU, "fp32"),
        ({"method": "lora", "precision": "bf16"}, CPU, "bf16"),
        ({"method": "qlora"}, CPU, "nf4 weights, bf16 compute"),
        ({"method": "full"}, CPU, "fp32"),
        ({"method": "lora"}, TURING, "fp16"),
        ({"method": "qlora"}, TURING, "nf4 weights, fp16 compute"),
        ({"method": "full"}, TURING, "fp32 weights, fp16 autocast"),
        ({"method": "lora"}, HOPPER, "bf16"),
        ({"method": "lora", "precision": "fp32"}, HOPPER, "fp32"),
        ({"method": "qlora"}, HOPPER, "nf4 weights, bf16 compute"),
        ({"method": "full"}, HOPPER, "fp32 weights, bf16 autocast"),
        ({"method": "full", "bf16_pure": True}, HOPPER, "bf16"),
    ],
)
def test_auto_takes_the_best_that_the_device_has(
    fields: dict[str, Any], device: Device, words: str
) -> None:
    assert precision_for(spec(**fields), device).words == words


def test_trained_weights_are_float32_where_a_loss_scaler_works() -> None:
    assert precision_for(spec(method="qlora"), TURING).trainable is torch.float32
    assert precision_for(spec(method="qlora"), HOPPER).trainable is None


def test_pure_bfloat16_has_no_autocast() -> None:
    precision = precision_for(spec(method="full", bf16_pure=True), HOPPER)
    assert (precision.weights, precision.autocast_dtype) == (torch.bfloat16, None)


@pytest.mark.parametrize(
    ("fields", "device", "attention"),
    [
        ({}, CPU, "sdpa"),
        ({}, TURING, "sdpa"),
        ({}, HOPPER, "flash_attention_3"),
        ({"method": "full"}, HOPPER, "flash_attention_3"),
        ({"precision": "fp32"}, HOPPER, "sdpa"),
        ({"attention": "eager"}, HOPPER, "eager"),
        ({"attention": "flash_attention_2"}, HOPPER, "flash_attention_2"),
    ],
)
def test_attention_is_variable_length_where_it_can_be(
    fields: dict[str, Any], device: Device, attention: str
) -> None:
    assert precision_for(spec(**fields), device).attention == attention


@pytest.mark.parametrize(
    ("setting", "device", "on"),
    [("auto", CPU, False), ("auto", HOPPER, True), ("on", CPU, True), ("off", HOPPER, False)],
)
def test_activations_are_recomputed_on_a_cuda_device(
    setting: str,
    device: Device,
    on: bool,  # noqa: FBT001 - a parameter of the table above
) -> None:
    precision = precision_for(spec(gradient_checkpointing=setting), device)
    assert precision.activation_checkpointing is on


@pytest.mark.parametrize(
    ("fields", "device", "error", "where"),
    [
        ({"precision": "fp16"}, CPU, SpecError, "precision"),
        ({"precision": "bf16"}, TURING, SpecError, "precision"),
        ({"method": "full", "bf16_pure": True}, TURING, SpecError, "bf16_pure"),
        ({"attention": "flash_attention_2"}, TURING, SetupError, "attention"),
        ({"attention": "flash_attention_2", "precision": "fp32"}, HOPPER, SpecError, "attention"),
    ],
)
def test_what_the_device_cannot_do_is_said_with_a_remedy(
    fields: dict[str, Any], device: Device, error: type[SpecError | SetupError], where: str
) -> None:
    with pytest.raises(error) as caught:
        precision_for(spec(**fields), device)
    assert caught.value.where == where
    assert caught.value.remedy


def test_this_machine_is_described() -> None:
    assert Device.current().cuda is torch.cuda.is_available()
