"""Names of fine-tuned models, as OpenAI writes them: `ft:{base}:{tenant}:{suffix}:{8 letters}`.

The last part is the beginning of the job's id, by which the model is found again; the whole name is
then compared, for a base or a tenant may hold colons of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.queries.jobs import ID_PREFIX
from models.tables import Job

_LETTERS = 8
_NAME = re.compile(rf"ft:.*:([A-Za-z0-9]{{{_LETTERS}}})(?::ckpt-step-(\d{{1,9}}))?", re.DOTALL)
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Named:
    """What a name says of where to look."""

    model: str  # without the checkpoint's part
    job_id_prefix: str
    step: int | None  # of a checkpoint


def model_name(job: Job) -> str:
    base = (job.request or {}).get("model") or job.base_model
    suffix = (job.request or {}).get("suffix") or job.name or ""
    letters = job.id.removeprefix(ID_PREFIX)[:_LETTERS]
    return f"ft:{shown_base(base)}:{job.tenant.name}:{shown_suffix(suffix)}:{letters}"


def checkpoint_name(job: Job, step: int) -> str:
    return f"{model_name(job)}:ckpt-step-{step}"


def parse_name(name: str) -> Named | None:
    """None for what cannot be the name of a fine-tuned model."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    letters, step = found.groups()
    model = name if step is None else name.removesuffix(f":ckpt-step-{step}")
    return Named(model, ID_PREFIX + letters, None if step is None else int(step))


def shown_base(base: str) -> str:
    """A hub name or an alias as it is; of a folder or a URL its last part; no script's query."""
    if base.startswith("scripted:"):
        return "scripted"
    is_place = "://" in base or base.startswith(("/", "."))
    return base.rstrip("/").rpartition("/")[2] if is_place else base


def shown_suffix(suffix: str) -> str:
    return _UNUSUAL.sub("-", suffix).strip("-")[:64]
