"""What Flower shows of a job's tasks where others have keyword arguments, in one short line: its
column is narrow. Whoever watches the broker sees it: no paths, no queries of URLs."""

from __future__ import annotations

from urllib.parse import urlsplit

from models.tables import Job

_LONGEST = 60


def of(job: Job) -> str:
    """`physics: lora on org/base-7b (support-bot)`."""
    base = _short(base_name(job.base_model))
    named = f" ({_short(job.name)})" if job.name else ""
    return f"{_short(job.tenant.name)}: {job.method} on {base}{named}"


def base_name(base_model: str) -> str:
    """`org/name` of a hub; the last part alone of a path or a URL, whose query may be a key."""
    if base_model.startswith("scripted:"):
        return "scripted"
    if "://" not in base_model and not base_model.startswith(("/", ".", "~")):
        return base_model
    path = urlsplit(base_model).path if "://" in base_model else base_model
    return path.rstrip("/").rpartition("/")[2] or "base model"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
