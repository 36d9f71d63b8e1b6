"""The base model, loaded once and kept: its key, its snapshot, its state between jobs."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gpu_worker.trainer import snapshot
from gpu_worker.trainer.failures import cause, is_out_of_memory
from gpu_worker.trainer.precision import Precision
from models.errors import BaseModelError

# `forward`: TRL's fused output head; the hooks' handles; TRL's tags for a model card.
_LEFT_ON_MODEL = ("forward", "_require_grads_hook", "_require_grads_hooks", "model_tags")


@dataclass(frozen=True)
class BaseKey:
    """What must be equal for a job to use a loaded base. Adapters differ; none of these may."""

    path: str
    revision: str
    quantized: bool
    weights: torch.dtype
    attention: str
    attention_named: bool
    trust_remote_code: bool

    @classmethod
    def of(cls, path: str, revision: str, precision: Precision, *, trust: bool) -> BaseKey:
        return cls(
            path=path,
            revision=revision,
            quantized=precision.quantized,
            weights=precision.weights,
            attention=precision.attention,
            attention_named=precision.attention_named,
            trust_remote_code=trust,
        )


class Base:
    """One base model in memory with its tokenizer, and the snapshot that it must equal."""

    def __init__(
        self, key: BaseKey, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.key = key
        self.model: Any = model  # transformers' methods are only partly typed
        self.tokenizer = tokenizer
        self.snapshot = snapshot.take(model, tokenizer)
        self._config = copy.deepcopy(vars(model.config))
        self._generation_config = copy.deepcopy(model.generation_config)
        self._sides = (tokenizer.padding_side, tokenizer.truncation_side)

    @property
    def attention(self) -> str:
        """The kernel that runs."""
        return str(self.model.config._attn_implementation)  # noqa: SLF001 - it is kept nowhere else

    def differences(self) -> list[str]:
        """How the base differs from the day it was loaded; empty if it may be used."""
        try:
            now = snapshot.take(self.model, self.tokenizer)
        except RuntimeError as error:  # a broken CUDA context cannot even be read
            return [f"the base could not be read: {error}"]
        return self.snapshot.differences(now)

    def end_training(self) -> None:
        """Undo what training needs and answering or saving does not: the adapter stays on."""
        model = self.model
        for name in _LEFT_ON_MODEL:
            vars(model).pop(name, None)
        if model.is_activation_checkpointing:
            model.activation_checkpointing_disable()
        for name, module in model.named_modules():
            vars(module).pop("_gradient_checkpointing_func", None)
            if "gradient_checkpointing" not in self.snapshot.modules.get(name, {}):
                vars(module).pop("gradient_checkpointing", None)
            _remove_input_hooks(module)
        vars(model.config).clear()
        vars(model.config).update(copy.deepcopy(self._config))
        model.generation_config = copy.deepcopy(self._generation_config)
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()

    def restore(self, used: Any) -> None:
        """Take off what a job put on; `used` is the model as the job had it, adapter and all.

        Only what the libraries are known to leave is undone here. Whether that was all of it is
        for the snapshot to say.
        """
        if isinstance(used, PeftModel):
            used.unload()
        self.end_training()
        self.tokenizer.padding_side, self.tokenizer.truncation_side = self._sides
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.snapshot.requires_grad(name))
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout):  # a dpo job turns it off
                module.p = self.snapshot.modules[name]["p"]


def _remove_input_hooks(module: torch.nn.Module) -> None:
    """TRL and transformers both make the embeddings' output take gradients, and the second forgets
    the first one's hook: `disable_input_require_grads` removes only one of them."""
    hooks = module._forward_hooks  # noqa: SLF001 - torch has no other way to a lost handle's hook
    for number, hook in list(hooks.items()):
        if getattr(hook, "__name__", "") == "make_inputs_require_grads":
            del hooks[number]


def load(key: BaseKey, *, name: str) -> Base:
    """Load the base. Raises BaseModelError, or lets exhausted memory through.

    `name` is what the user calls it, for the message.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            key.path, trust_remote_code=key.trust_remote_code, local_files_only=True
        )
        model = load_model(key)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise BaseModelError(
            f"the base model {name} cannot be loaded: {cause(error)}",
            where=key.path,
            remedy="check that the folder holds a causal language model with its tokenizer, "
            "in a version that this worker's transformers knows",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: labels come from a column
    _settle(model)
    base = Base(key, model, tokenizer)
    # What lives until the process ends needs no look from the collector: with the libraries and
    # the base set aside, a collection takes milliseconds instead of a quarter of a second.
    gc.collect()
    gc.freeze()
    return base


def load_model(key: BaseKey) -> Any:
    options: dict[str, Any] = {
        "dtype": key.weights,
        "trust_remote_code": key.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,
    }
    if key.quantized:
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=key.weights,
        )
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    elif key.quantized:
        options["device_map"] = {"": "cpu"}
    try:
        return AutoModelForCausalLM.from_pretrained(
            key.path, attn_implementation=key.attention, **options
        )
    except (ValueError, ImportError) as error:
        if key.attention_named or "attention" not in str(error).lower():
            raise
    # The model has no such kernel: it takes the best of its own.
    return AutoModelForCausalLM.from_pretrained(key.path, **options)


def _settle(model: Any) -> None:
    """Let everything that a model sets on its first use be set before the snapshot."""
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights in place on the first forward in eval mode on a CPU
        # with AVX512-BF16, so that an evaluation would leave another base behind.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=token, use_cache=False)
        if hasattr(model.config.get_text_config(), "output_router_logits"):
            # Training a mixture of experts asks for these, and transformers then hooks every layer.
            model(input_ids=token, use_cache=False, output_router_logits=True)
