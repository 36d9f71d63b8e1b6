"""The export stage: what was trained, as others load it, loaded again and compared.

    adapter      the two files that PEFT and vLLM load
    merged       base and adapter in one model: bfloat16 safetensors in shards
    gguf-ready   the same, with all that llama.cpp's convert_hf_to_gguf.py reads

A folder appears only after it was loaded again, in a fresh way, and found to be what was trained.
There is one bfloat16 copy of the model in memory at a time, beside a warm base that leaves room.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gpu_worker.protocol import Exported, Run
from gpu_worker.trainer import snapshot
from gpu_worker.trainer.adapter import CONFIG_FILE, WEIGHTS_FILE
from gpu_worker.trainer.checkpoint import durable_folder, folder_size
from gpu_worker.trainer.comparison import (
    EXACT,
    ROUNDING,
    Difference,
    Logits,
    Tolerance,
    compare,
    prompts_for,
    read,
)
from gpu_worker.trainer.measure import core
from gpu_worker.trainer.outcome import weights_digest
from models.adapter_work import ExportWork
from models.errors import ExportError, TrainingError
from models.serving import adapter_concerns, gguf_concerns
from models.spec import JobSpec

_SHARD = "4GB"
# What makes up a tokenizer, in any of its forms: the base's own files, as its users know them.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION = "generation_config.json"

Report = Callable[[str, int, int], None]  # what, done, in all; may raise, to stop


class Export:
    """One export; `report` is told what is being done."""

    def __init__(self, run: Run, spec: JobSpec, work: ExportWork, report: Report) -> None:
        self._run, self._spec, self._work, self._report = run, spec, work, report
        self._base = Path(run.base_path)
        self._trained = Path(_given(run))
        self._target = Path(run.output_path) / "export"
        self._prompts: list[list[int]] = []
        self._source = ""

    @property
    def model_bytes(self) -> int:
        """Of one copy in bfloat16, whatever its files hold."""
        folder = self._trained if self._work.kind == "model" else self._base
        return sum(_bfloat16_bytes(path) for path in folder.glob("*.safetensors"))

    def read(self, model: Any, what: str) -> Logits:
        """The logits of a model as it was trained."""
        if not self._prompts:
            tokenizer = AutoTokenizer.from_pretrained(
                self._base,
                trust_remote_code=self._spec.trust_remote_code,
                local_files_only=True,
            )
            prepared = self._run.prepared_path
            held_out = Path(prepared) / "eval.arrow" if prepared else None
            vocabulary = core(model).config.get_text_config().vocab_size
            self._source, self._prompts = prompts_for(tokenizer, held_out, vocabulary)
        said = f"reading {self._source}: {what}"
        return read(model, self._prompts, lambda done, total: self._report(said, done, total))

    def adapter(self, load: Callable[[Path], Any]) -> Exported:
        """`load` puts the adapter of a folder on the base, in place of the one before."""
        trained = self.read(load(self._trained), "the adapter as trained")
        with durable_folder(self._target) as folder:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(self._trained / name, folder / name)
            again = self.read(load(folder), "the adapter as exported")
            found = compare(trained, again)
            self._judge("the adapter", found, EXACT)
            config = json.loads((folder / CONFIG_FILE).read_text())
            report = self._described(found, EXACT, reference="base with the adapter as trained") | {
                "rank": config["r"],
                "concerns": adapter_concerns(config),
            }
            _write(folder / "export.json", report)
        return self._exported(report)

    def merged(self, device: str, as_trained: Logits | None) -> Exported:
        """`as_trained`: the logits of the quantised base with its adapter, to tell the shift."""
        report: dict[str, Any] = {}
        model = self._load(self._trained if self._work.kind == "model" else self._base, device)
        if self._work.kind == "model":
            reference = self.read(model, "the model in bfloat16")
            named = "the trained model in bfloat16"
        else:
            model, reference = self._merge(model, report)
            named = "bfloat16 base with the adapter beside it"
        if as_trained is not None:
            report["shift_from_nf4"] = asdict(compare(as_trained, reference))
        with durable_folder(self._target) as folder:
            self._report("writing the model", 0, 0)
            sums = snapshot.checksums(dict(model.named_parameters()))
            self._write_model(model, folder)
            del model
            _free()
            model = self._load(folder, device)
            if snapshot.checksums(dict(model.named_parameters())) != sums:
                raise ExportError("the files hold other weights than were written", where="export")
            again = self.read(model, "the export, loaded again")
            del model
            _free()
            allowed = EXACT if self._work.kind == "model" else ROUNDING
            found = compare(reference, again)
            self._judge("the merged model", found, allowed)
            if as_trained is not None:
                report["export_from_nf4"] = asdict(compare(as_trained, again))
            report = self._described(found, allowed, reference=named) | report
            config = json.loads((folder / "config.json").read_text())
            names = {path.name for path in folder.iterdir()}
            report["concerns"] = (
                gguf_concerns(config, names) if self._work.format == "gguf-ready" else []
            )
            _write(folder / "export.json", report)
        return self._exported(report)

    def _merge(self, model: Any, report: dict[str, Any]) -> tuple[Any, Logits]:
        """The merged model, and the logits of base and adapter before that."""
        before = snapshot.checksums(dict(model.named_parameters()))
        tuned = PeftModel.from_pretrained(model, str(self._trained)).eval()
        reference = self.read(tuned, "bfloat16 base with the adapter")
        with tuned.disable_adapter():
            effect = compare(reference, self.read(tuned, "bfloat16 base alone"))
        adapted = _adapted(tuned)
        self._report("merging", 0, 0)
        try:
            merged: Any = tuned.merge_and_unload(safe_merge=True)
        except ValueError as error:  # a NaN, which `safe_merge` looks for
            raise TrainingError(
                f"the adapter cannot be merged: {error}", where="export", remedy="train it again"
            ) from error
        after = snapshot.checksums(dict(merged.named_parameters()))
        changed = {name for name in after if after[name] != before.get(name)}
        if stray := sorted(changed - adapted):
            raise ExportError(f"the merge changed {stray[0]}, which has no adapter", where="export")
        report["adapter_effect"] = asdict(effect)
        report["layers"] = len(adapted)
        report["layers_changed"] = len(changed)  # an adapter can be finer than bfloat16 tells
        return merged, reference

    def _load(self, folder: Path, device: str) -> Any:
        self._report("loading the model in bfloat16", 0, 0)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map={"": device},
            trust_remote_code=self._spec.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
        )
        return model.eval()

    def _write_model(self, model: Any, folder: Path) -> None:
        """Weights by transformers; configuration and tokenizer are the base's own files, which
        whatever loads the base can read."""
        if (self._base / _GENERATION).is_file():
            # transformers refuses to save some that it reads (a temperature without sampling).
            model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        model.save_pretrained(folder, max_shard_size=_SHARD)
        for name in (*_TOKENIZER_FILES, _GENERATION):
            if (self._base / name).is_file():
                shutil.copyfile(self._base / name, folder / name)
        if self._spec.trust_remote_code:
            for code in self._base.glob("*.py"):
                shutil.copyfile(code, folder / code.name)
        config = json.loads((self._base / "config.json").read_text())
        config.pop("quantization_config", None)
        config["torch_dtype"] = "bfloat16"  # the name that every reader knows
        if "dtype" in config:
            config["dtype"] = "bfloat16"
        _write(folder / "config.json", config)

    def _judge(self, what: str, found: Difference, allowed: Tolerance) -> None:
        if not found.within(allowed):
            raise ExportError(
                f"{what}, loaded again, is not what was trained: {found.words()}; allowed:"
                f" {allowed.words()}",
                where="export",
                remedy="export the adapter instead, which is not rounded; if that fails as well,"
                " report it",
            )

    def _described(self, found: Difference, allowed: Tolerance, reference: str) -> dict[str, Any]:
        return {
            "format": self._work.format,
            "source": self._work.reference,
            "base_model": self._run.base_name,
            "base_revision": self._run.base_revision,
            "prompts": self._source,
            "reference": reference,
            "difference": asdict(found),
            "tolerance": asdict(allowed),
            "said": found.words(),
            "allowed": allowed.words(),
        }

    def _exported(self, report: dict[str, Any]) -> Exported:
        return Exported(
            path=str(self._target),
            size_bytes=folder_size(self._target),
            digest=weights_digest(self._target),
            report=report,
        )


def _bfloat16_bytes(path: Path) -> int:
    with safe_open(path, framework="pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (no dict)
    return sum(2 * math.prod(shape) for shape in shapes)


def _given(run: Run) -> str:
    if run.adapter_path is None:
        raise TrainingError("no adapter was given to export", remedy="export it again")
    return run.adapter_path


def _adapted(tuned: Any) -> set[str]:
    """Names, in the base, of the weights that carry an adapter."""
    return {
        f"{name}.weight"
        for name, module in tuned.get_base_model().named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
