"""The model card that is saved with every adapter or model: how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_worker.protocol import Run
from models.spec import JobSpec

_COUNTS = ("rows_read", "rows_train", "rows_eval", "tokens_train", "truncated", "packed")


def write_card(folder: Path, run: Run, spec: JobSpec, result: dict[str, Any]) -> None:
    """README.md in `folder`. The base stands in it by its name, never by a path in a cache."""
    (folder / "README.md").write_text(card(run, spec, result))


def card(run: Run, spec: JobSpec, result: dict[str, Any]) -> str:
    """Markdown with the hub's header."""
    title = spec.name or run.job_id
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    training = {
        "method": spec.method,
        **_adapter_rows(spec),
        "steps": result["steps"],
        "epochs": f"{result['epoch']:.2f}",
        "tokens": f"{result['trained_tokens']:,}",
        "batch": f"{result['batch_size']} × {result['gradient_accumulation']} accumulated",
        "learning rate": f"{spec.resolved_learning_rate:g}, {spec.schedule}, "
        f"{result['warmup_steps']} warm-up steps",
        "optimizer": result["optimizer"],
        "weight decay": f"{spec.weight_decay:g}",
        "gradient clip": f"{spec.gradient_clip:g}",
        "sequence length": spec.max_sequence_length,
        "loss on": spec.loss_on,
        "precision": result["precision"],
        "attention": result["attention"],
        "seed": spec.seed,
        "final training loss": f"{result['train_loss']:.4f}",
    }
    lines = [
        "---",
        f"base_model: {run.base_name}",
        f"library_name: {'transformers' if spec.method == 'full' else 'peft'}",
        "pipeline_tag: text-generation",
        "tags:",
        "- celora",
        f"- {spec.method}",
        "---",
        "",
        f"# {title}",
        "",
        f"Fine-tuned by Celora from `{run.base_name}`, revision `{run.base_revision}`.",
        f"Job `{run.job_id}`.",
        "",
        "## Data",
        "",
        *_table({"data set": f"`{spec.dataset}`", **_data(run)}),
        "",
        "## Training",
        "",
        *_table(training),
        "",
        f"Made with {versions}.",
        "",
        "## Use",
        "",
        *_usage(run, spec),
        "",
    ]
    return "\n".join(lines)


def _data(run: Run) -> dict[str, Any]:
    """Digest and counts, as preprocessing found them."""
    try:
        verdict = json.loads((Path(run.prepared_path) / "verdict.json").read_text())
    except (OSError, ValueError):
        verdict = {}
    counts = {name: verdict[name] for name in _COUNTS if name in verdict}
    return {name.replace("_", " "): value for name, value in (counts | run.facts).items()}


def _adapter_rows(spec: JobSpec) -> dict[str, Any]:
    if spec.method == "full":
        return {}
    asked, pairs = spec.target_modules, spec.method == "dpo"
    return {
        "rank": spec.rank,
        "alpha": f"{spec.alpha:g}" + (" (rank-stabilised)" if spec.use_rslora else ""),
        "dropout": f"{spec.resolved_dropout:g}",
        "layers": asked if isinstance(asked, str) else ", ".join(asked),
        **({"base held as": spec.dpo_base, "beta": f"{spec.dpo_beta:g}"} if pairs else {}),
        **({"began with": f"the adapter of job `{spec.after}`"} if spec.start_from_adapter else {}),
    }


def _usage(run: Run, spec: JobSpec) -> list[str]:
    if spec.method == "full":
        load = 'model = AutoModelForCausalLM.from_pretrained("PATH-TO-THIS-FOLDER")'
        return ["```python", "from transformers import AutoModelForCausalLM", load, "```"]
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f'base = AutoModelForCausalLM.from_pretrained("{run.base_name}")',
        'model = PeftModel.from_pretrained(base, "PATH-TO-THIS-FOLDER")',
        "```",
    ]


def _table(rows: dict[str, Any]) -> list[str]:
    cells = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return ["| | |", "|---|---|", *cells]


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
