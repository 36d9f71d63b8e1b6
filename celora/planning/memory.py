"""How much GPU memory a job needs, by part.

Weights, adapter, gradients and optimizer states are counted exactly: they follow from the model's
shapes and the types that the trainer gives them. Activations are estimated from what autograd keeps
of a decoder layer; kernels and allocators differ, so they carry a low and a high figure.
GB are 10⁹ bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.spec import JobSpec

# NF4 with double quantisation: 4 bits; one byte of scale for 64 weights, and one fp32 for 256 such
# scales (QLoRA, arXiv:2305.14314, section 3: 0.127 bits a weight).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# The 8-bit optimizer's two states: a byte each, and one fp32 scale for 256 of them.
STATES_8BIT_BYTES = 2 * (1 + 4 / 256)
# TRL's fused output head works on tiles of so many tokens and logits (trl.kernels.chunked_logprob).
HEAD_TILE_TOKENS = 4096
HEAD_TILE_LOGITS = 8192
# What CUDA, cuBLAS and cuDNN take for themselves, and what the allocator cannot use, as a part.
CONTEXT_BYTES = (0.4e9, 0.7e9, 1.2e9)
FRAGMENTED = (0.01, 0.04, 0.10)
_ACTIVATIONS = (0.7, 1.0, 1.4)
# The evaluation's keys and values never take more (gpu_worker/trainer/answers.py).
CACHE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Architecture:
    """What `gpu_worker.trainer.architecture` counts, and nothing else."""

    architecture: str
    parameters: int
    quantisable: int  # weights of linear layers that NF4 takes
    trainable: int
    small_trainable: int  # of these in tensors too small for 8-bit states
    hidden: int
    layers: int
    vocabulary: int
    attention_heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    tied: bool

    @property
    def key_value_width(self) -> int:
        return self.head_width * self.key_value_heads


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one part; the three are equal where it is counted, not estimated."""

    name: str
    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Memory:
    """`parts` of the training; the evaluation after it needs `evaluation` beside the weights."""

    parts: tuple[Part, ...]
    precision: str

    @property
    def low(self) -> float:
        return sum(part.low for part in self.parts)

    @property
    def expected(self) -> float:
        return sum(part.expected for part in self.parts)

    @property
    def high(self) -> float:
        return sum(part.high for part in self.parts)


def estimate(
    spec: JobSpec,
    model: Architecture,
    *,
    micro_batch: int,
    row_tokens: int,
    correction: float = 1.0,
) -> Memory:
    """Memory on a CUDA device with bfloat16, for rows of `row_tokens` tokens.

    `correction` scales the activations, from the measured peaks of like jobs.
    """
    compute = 4 if spec.precision == "fp32" else 2
    tokens = micro_batch * row_tokens * (2 if spec.method == "dpo" else 1)  # chosen and rejected
    trained = _trained_bytes(spec, compute)
    checkpointing = spec.gradient_checkpointing != "off"
    fixed = (
        _exact("weights", weight_bytes(spec, model, compute)),
        _exact("adapter", 0 if spec.held_as == "full" else model.trainable * trained),
        _exact("gradients", model.trainable * trained),
        _optimizer(spec, model, trained),
    )
    copies = cast_bytes(spec, model)
    moving = (
        _spread("activations", activation_bytes(spec, model, tokens, row_tokens, compute,
                checkpointing=checkpointing) * correction, _ACTIVATIONS),
        *([Part("casts", 0.0, copies, copies)] if copies else []),
        _exact("logits", head_bytes(spec, model, tokens, compute)),
        *([_spread("reference", reference_bytes(model, tokens, compute), _ACTIVATIONS)]
          if spec.method == "dpo" else []),
    )  # fmt: skip
    cache = _cache(spec, model, row_tokens, compute, beside=sum(p.expected for p in moving))
    parts = (*fixed, *moving, cache)
    base = tuple(sum(getattr(p, name) for p in parts) for name in ("low", "expected", "high"))
    overhead = (
        context + part * total
        for context, part, total in zip(CONTEXT_BYTES, FRAGMENTED, base, strict=True)
    )
    return Memory((*parts, Part("overhead", *overhead)), _precision(spec, compute))


def weight_bytes(spec: JobSpec, model: Architecture, compute: int = 2) -> float:
    if spec.held_as == "qlora":
        rest = model.parameters - model.quantisable
        return model.quantisable * NF4_BYTES + rest * compute
    if spec.held_as == "full":
        return model.parameters * (2 if spec.bf16_pure else 4)
    return model.parameters * compute


def optimizer_bytes(spec: JobSpec, model: Architecture, trained: int) -> float:
    if spec.resolved_optimizer == "adamw_torch":
        return model.trainable * 2 * trained
    large = model.trainable - model.small_trainable
    return large * STATES_8BIT_BYTES + model.small_trainable * 2 * 4


def head_bytes(spec: JobSpec, model: Architecture, tokens: int, compute: int) -> float:
    """The fused head: one tile of logits with its gradient, and what it keeps of the hidden states.

    Never tokens × vocabulary: that was 4 GB for 8,192 tokens of a vocabulary of 128,256.
    """
    tile = min(tokens, HEAD_TILE_TOKENS) * min(HEAD_TILE_LOGITS, model.vocabulary)
    weight_gradient = model.vocabulary * model.hidden * 4 if spec.held_as == "full" else 0
    return tile * (compute + 4) + tokens * model.hidden * 4 + weight_gradient


def cast_bytes(spec: JobSpec, model: Architecture) -> float:
    """Full training in fp32: autocast keeps the copies it has made of the layers' weights until
    a forward pass ends. Of an adapter they are too small to count."""
    if spec.held_as != "full" or spec.bf16_pure or spec.precision == "fp32":
        return 0.0
    return (model.quantisable + model.vocabulary * model.hidden) * 2.0


def reference_bytes(model: Architecture, tokens: int, compute: int) -> float:
    """DPO reads its pairs with the reference too, while the policy's activations wait. Nothing is
    kept there: a layer's input and output, its feed-forward part, and a tile of logits."""
    tile = min(tokens, HEAD_TILE_TOKENS) * min(HEAD_TILE_LOGITS, model.vocabulary)
    return tokens * compute * (2 * model.hidden + 2 * model.feed_forward) + tile * (compute + 4)


def activation_bytes(
    spec: JobSpec,
    model: Architecture,
    tokens: int,
    row_tokens: int,
    compute: int,
    *,
    checkpointing: bool,
) -> float:
    """Bytes that autograd keeps for the backward pass.

    With recomputation: each layer's input, and one layer whole. Without: every layer whole.
    """
    layer = tokens * _layer_bytes_per_token(spec, model, compute)
    if spec.attention == "eager":
        layer += (tokens / row_tokens) * model.attention_heads * row_tokens**2 * (compute + 4)
    if not checkpointing:
        return model.layers * layer
    return model.layers * tokens * model.hidden * compute + layer


def _layer_bytes_per_token(spec: JobSpec, model: Architecture, compute: int) -> float:
    """One decoder layer: two norms (an fp32 copy and the result), attention (queries, keys and
    values before and after rotation, the output), the gated feed-forward part (gate, up, their
    activation and product), and the inputs the adapters or weights need."""
    hidden, wide, narrow = model.hidden, model.feed_forward, model.key_value_width
    norms = 2 * hidden * (4 + compute)
    attention = compute * (4 * hidden + 4 * narrow)
    feed_forward = compute * 4 * wide
    if spec.held_as == "full":
        inputs = compute * (2 * hidden + hidden + wide)  # shared by q, k, v and by gate, up
    else:
        dropped = 1 if spec.resolved_dropout else 0  # the mask, a byte each
        inputs = (6 * hidden + wide) * (compute + dropped)  # one copy for each adapted layer
    return norms + attention + feed_forward + inputs


def _cache(
    spec: JobSpec, model: Architecture, row_tokens: int, compute: int, *, beside: float
) -> Part:
    """The evaluation's keys and values, as far as they need more than the training's own moving
    parts, which are gone by then."""
    if not spec.evaluate or not spec.eval_generate_rows:
        return _exact("cache", 0)
    row = model.layers * 2 * model.key_value_width * compute
    rows = min(64, spec.eval_generate_rows)
    whole = min(float(CACHE_BYTES), rows * (row_tokens + spec.eval_max_new_tokens) * row)
    return _exact("cache", max(0.0, whole - beside))


def _optimizer(spec: JobSpec, model: Architecture, trained: int) -> Part:
    states = optimizer_bytes(spec, model, trained)
    paged = spec.resolved_optimizer.startswith("paged")
    return Part("optimizer", 0.0 if paged else states, states, states)


def _trained_bytes(spec: JobSpec, compute: int) -> int:
    """Of one trained parameter: adapters of an unquantised base and full weights are fp32."""
    if spec.held_as == "qlora":
        return compute
    return 2 if spec.bf16_pure else 4


def _precision(spec: JobSpec, compute: int) -> str:
    name = "fp32" if compute == 4 else "bf16"  # noqa: PLR2004 (bytes)
    if spec.held_as == "qlora":
        return f"nf4 weights, {name} compute and adapter"
    if spec.held_as == "full":
        return "bf16 throughout" if spec.bf16_pure else f"fp32 weights, {name} autocast"
    return f"{name} weights, fp32 adapter"


def _exact(name: str, count: float) -> Part:
    return Part(name, count, count, count)


def _spread(name: str, count: float, factors: tuple[float, float, float]) -> Part:
    return Part(name, *(count * factor for factor in factors))


def largest_micro_batch(
    spec: JobSpec, model: Architecture, *, row_tokens: int, available_bytes: float,
    correction: float = 1.0,
) -> int | None:  # fmt: skip
    """The largest micro-batch whose high estimate fits and that divides the effective batch.

    None when not even one row fits. Accumulation makes up for a smaller one.
    """
    effective = spec.effective_batch_size
    for size in range(effective, 0, -1):
        if effective % size:
            continue
        need = estimate(spec, model, micro_batch=size, row_tokens=row_tokens, correction=correction)
        if math.ceil(need.high) <= available_bytes:
            return size
    return None
