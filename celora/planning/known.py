"""Models to show plans with: no file of theirs is needed.

From the published sizes of Llama 3.1; the counts are those of `gpu_worker.trainer.architecture`,
with JobSpec's default adapter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celora.planning.memory import Architecture, Memory, estimate
from models.spec import JobSpec

LLAMA_8B = Architecture(
    architecture="LlamaForCausalLM",
    parameters=8_030_261_248,
    quantisable=6_979_321_856,
    trainable=41_943_040,
    small_trainable=0,
    hidden=4096,
    layers=32,
    vocabulary=128_256,
    attention_heads=32,
    key_value_heads=8,
    head_width=128,
    feed_forward=14_336,
    tied=False,
)
LLAMA_70B = replace(
    LLAMA_8B,
    parameters=70_553_706_496,
    quantisable=68_451_041_280,
    trainable=207_093_760,
    hidden=8192,
    layers=80,
    attention_heads=64,
    feed_forward=28_672,
)
# The base of `make demo`, which is made on the spot.
DEMO_BASE = Architecture(
    architecture="LlamaForCausalLM",
    parameters=480_640,
    quantisable=425_984,
    trainable=81_920,
    small_trainable=45_056,
    hidden=128,
    layers=2,
    vocabulary=422,
    attention_heads=16,
    key_value_heads=16,
    head_width=8,
    feed_forward=384,
    tied=True,
)
ROW_TOKENS = 2048


def planned(model: Architecture, **fields: Any) -> Memory:
    """The memory of a job with JobSpec's defaults but for `fields`, rows of ROW_TOKENS tokens."""
    spec = JobSpec(**{"base_model": "known", "dataset": "none"} | fields)
    if spec.method == "full":
        model = replace(model, trainable=model.parameters)
    return estimate(spec, model, micro_batch=spec.batch_size, row_tokens=ROW_TOKENS)
