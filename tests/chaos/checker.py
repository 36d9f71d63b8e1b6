"""Reads what a run has left behind and judges it. It shares no line with the product.

    lost         an acknowledged submit without its job, a job that has not ended, or not as it had
                 to; an acknowledged cancel that was not heeded; a step without its metrics
    duplicated   a stage that was finished or begun twice, a job that ended twice, steps or GPU time
                 counted twice, two adapters, two jobs for one submit
    overlapping  two attempts at a time on one GPU or of one job, two trainers alive on one GPU,
                 a lease that was ended before its time
    stale        a write under a fence after its attempt had ended (or that never was), a fence that
                 fell, a registered file that is missing or torn

Its sources: the tables, the notes of audit.py's triggers, the ledger of acknowledged requests, the
witness's list of trainers, and the files.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import psycopg
from psycopg.rows import dict_row

from tests.chaos.ledger import Entry

Row = dict[str, Any]

_ENDS = {"completed", "failed", "cancelled"}
_MOVES = {
    ("pending", "queued"), ("pending", "failed"), ("pending", "cancelled"), ("pending", "paused"),
    ("queued", "running"), ("queued", "failed"), ("queued", "cancelled"), ("queued", "paused"),
    ("running", "queued"), ("running", "completed"), ("running", "failed"),
    ("running", "cancelled"), ("running", "paused"), ("paused", "pending"), ("paused", "queued"),
    ("paused", "cancelled"), ("failed", "pending"), ("failed", "queued"),
}  # fmt: skip
_STAGES = ("preprocess", "train", "evaluate")
# The witness tells an end when it has been told, and the kernel counts a start in ticks.
_BLUR_SECONDS = 0.05


@dataclass
class Findings:
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.overlapping or self.stale)


def check(url: str, entries: list[Entry], lives: list[Row]) -> Findings:
    """`url` is libpq's; `lives` are the witness's lines."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SET timezone TO 'UTC'")
        return _Checker(connection, entries).findings(lives)


def read_lives(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class _Checker:
    def __init__(self, connection: psycopg.Connection[Row], entries: list[Entry]) -> None:
        self._connection = connection
        self._entries = entries
        self._found = Findings(submitted=len(entries))
        self._jobs = self._rows(
            "SELECT jobs.*, tenants.name AS tenant FROM jobs"
            " JOIN tenants ON tenants.id = jobs.tenant_id"
        )
        self._attempts = self._rows("SELECT * FROM attempts ORDER BY id")

    def findings(self, lives: list[Row]) -> Findings:
        found = self._found
        for state in ("completed", "failed", "cancelled"):
            setattr(found, state, sum(job["state"] == state for job in self._jobs))
        found.lost += [*self._promises(), *self._unfinished(), *self._gaps()]
        found.duplicated += [*self._twice(), *self._run_again(), *self._counted_twice()]
        found.overlapping += [*self._attempts_overlap(), *self._cut_short()]
        found.overlapping += [*_overlaps(lives), *self._unseen(lives)]
        found.stale += [*self._late_writes(), *self._fences(), *self._files()]
        return found

    def _rows(self, query: str) -> list[Row]:
        return self._connection.execute(query.encode()).fetchall()

    # Lost

    def _promises(self) -> Iterator[str]:
        by_key = {(job["tenant"], job["idempotency_key"]): job for job in self._jobs}
        for entry in self._entries:
            job = by_key.get((entry.tenant, entry.key))
            if job is None:
                yield f"submit {entry.key} was acknowledged, and there is no job"
                continue
            name, state = job["id"], job["state"]
            if entry.job_id not in {None, name}:
                yield f"submit {entry.key} was answered {entry.job_id}, but its job is {name}"
            allowed = {"cancelled", "completed"} if entry.cancelled else {entry.expected}
            if state in _ENDS and state not in allowed:
                why = (job["error"] or {}).get("message")
                yield f"{name} is {state}, not {' or '.join(sorted(allowed))}: {why}"

    def _unfinished(self) -> Iterator[str]:
        for job in self._jobs:
            if job["state"] not in _ENDS:
                yield f"{job['id']} has not ended: {job['state']}, stage {job['stage']}"
        for attempt in self._attempts:
            if attempt["ended_at"] is None:
                yield f"attempt {attempt['fence']} of {attempt['job_id']} has not ended"

    def _gaps(self) -> Iterator[str]:
        """A completed job has a loss for each of its steps, and what it was to make."""
        steps = defaultdict(list)
        for row in self._rows(
            "SELECT job_id, step FROM metrics WHERE name = 'train_loss' AND stage = 'train'"
            " ORDER BY job_id, step"
        ):
            steps[row["job_id"]].append(row["step"])
        evaluated = {row["job_id"] for row in self._rows("SELECT job_id FROM evaluations")}
        for job in self._jobs:
            if job["state"] != "completed":
                continue
            missing = set(range(1, (job["total_steps"] or 0) + 1)) - set(steps[job["id"]])
            if missing or not job["total_steps"]:
                listed = ", ".join(map(str, sorted(missing)[:8]))
                yield f"{job['id']} has no loss for {len(missing)} of its steps ({listed} …)"
            if job["adapter_url"] is None:
                yield f"{job['id']} has completed without an adapter"
            if job["spec"].get("evaluate", True) and job["id"] not in evaluated:
                yield f"{job['id']} has completed without its evaluation"

    # Duplicated

    def _twice(self) -> Iterator[str]:
        for what, query in {
            "jobs for one submit": "SELECT idempotency_key AS of, count(*) FROM jobs"
            " WHERE idempotency_key IS NOT NULL GROUP BY tenant_id, idempotency_key",
            "adapters": "SELECT job_id AS of, count(*) FROM artifacts"
            " WHERE kind IN ('adapter', 'model') GROUP BY job_id",
            "attempts that completed its training": "SELECT job_id AS of, count(*) FROM attempts"
            " WHERE outcome = 'completed' AND gpu_id IS NOT NULL GROUP BY job_id",
            "attempts that completed its preparation": "SELECT job_id AS of, count(*)"
            " FROM attempts WHERE outcome = 'completed' AND gpu_id IS NULL GROUP BY job_id",
            "evaluations of one model": "SELECT job_id AS of, count(*) FROM evaluations"
            " GROUP BY job_id, subject",
            "losses for one step": "SELECT job_id AS of, count(*) FROM metrics"
            " GROUP BY job_id, stage, name, step",
            "ends of one attempt": "SELECT job_id AS of, count(*) FROM chaos.ends"
            " GROUP BY job_id, fence",
        }.items():
            for row in self._rows(query):
                if row["count"] > 1:
                    yield f"{row['of']} has {row['count']} {what}"
        for event in ("prepared", "stage", "completed"):
            for row in self._rows(
                f"SELECT job_id, count(*) FROM events WHERE kind = '{event}' GROUP BY job_id"  # noqa: S608 (ours)
            ):
                if row["count"] > 1:
                    yield f"{row['job_id']} was said {row['count']} times to be at '{event}'"

    def _run_again(self) -> Iterator[str]:
        for move in self._rows("SELECT * FROM chaos.moves ORDER BY id"):
            before, after = move["state_before"], move["state"]
            if before != after and (before, after) not in _MOVES:
                yield f"{move['job_id']} went from {before} to {after}"
            if _STAGES.index(move["stage"]) < _STAGES.index(move["stage_before"]):
                yield f"{move['job_id']} went back from {move['stage_before']} to {move['stage']}"
        done_at: dict[tuple[str, str], Any] = {}
        for move in self._rows("SELECT * FROM chaos.moves WHERE stage <> stage_before"):
            done_at[move["job_id"], move["stage_before"]] = move["at"]
        for attempt in self._attempts:
            claimed = attempt["claimed_stages"]
            if len(set(claimed)) < len(claimed):
                yield f"attempt {attempt['fence']} of {attempt['job_id']} claimed a stage twice"
            for stage in claimed:
                done = done_at.get((attempt["job_id"], stage))
                if done is not None and attempt["claimed_at"] > done:
                    yield f"{attempt['job_id']} ran {stage} again in attempt {attempt['fence']}"

    def _counted_twice(self) -> Iterator[str]:
        used: dict[str, float] = defaultdict(float)
        for attempt in self._attempts:
            if attempt["gpu_id"] is not None and attempt["claimed_at"] and attempt["ended_at"]:
                seconds = attempt["ended_at"] - attempt["claimed_at"]
                used[attempt["job_id"]] += seconds.total_seconds()
        for job in self._jobs:
            if abs(job["gpu_seconds"] - used[job["id"]]) > 1e-3:
                yield f"{job['id']}: {job['gpu_seconds']} s charged for {used[job['id']]} s"
            base, _, query = job["base_model"].partition("?")
            if job["state"] == "completed" and base == "scripted:":
                script = {"steps": "20", "tokens": "100"} | dict(parse_qsl(query))
                tokens = int(script["steps"]) * int(script["tokens"])
                if job["trained_tokens"] != tokens:
                    yield f"{job['id']} counts {job['trained_tokens']} tokens, not {tokens}"
        charged, day = (
            {row["tenant_id"]: row["sum"] for row in self._rows(query)}
            for query in (
                "SELECT tenant_id, sum(gpu_seconds) FROM jobs GROUP BY tenant_id",
                (
                    "SELECT users.tenant_id, sum(gpu_seconds) FROM usage_days"
                    " JOIN users ON users.id = user_id GROUP BY users.tenant_id"
                ),
            )
        )
        for tenant, seconds in charged.items():
            if abs(day.get(tenant, 0) - seconds) > 1e-3:
                yield f"tenant {tenant}: its days hold {day.get(tenant, 0)} s of {seconds} s"

    # Overlapping

    def _attempts_overlap(self) -> Iterator[str]:
        for kind in ("gpu_id", "job_id"):
            groups = defaultdict(list)
            for attempt in self._attempts:
                if attempt[kind] is not None:
                    groups[attempt[kind]].append(attempt)
            for name, attempts in groups.items():
                attempts.sort(key=lambda one: one["placed_at"])
                for first, second in pairwise(attempts):
                    if first["ended_at"] is None or second["placed_at"] < first["ended_at"]:
                        yield (
                            f"{kind} {name}: attempt {second['id']} began at"
                            f" {second['placed_at']}, {first['id']} ended at {first['ended_at']}"
                        )

    def _cut_short(self) -> Iterator[str]:
        for attempt in self._attempts:
            ran_out = attempt["reason"] == "its lease was not renewed"
            if ran_out and attempt["ended_at"] < attempt["lease_until"]:
                yield f"the lease of attempt {attempt['id']} was cut short"

    def _unseen(self, lives: list[Row]) -> Iterator[str]:
        """Trainers that the tables know and the witness does not: it could not tell of them."""
        seen = {life["pid"] for life in lives}
        for attempt in self._attempts:
            if attempt["trainer_pid"] is not None and attempt["trainer_pid"] not in seen:
                yield f"nobody has watched trainer {attempt['trainer_pid']}"

    # Stale

    def _late_writes(self) -> Iterator[str]:
        known = {(one["job_id"], one["fence"]): one for one in self._attempts}
        counts: dict[str, int] = defaultdict(int)
        for write in self._rows("SELECT * FROM chaos.writes ORDER BY id"):
            name = f"{write['place']} under fence {write['fence']} of {write['job_id']}"
            attempt = known.get((write["job_id"], write["fence"]))
            if attempt is None or attempt["claimed_at"] is None:
                counts[f"{name}, which nobody had claimed"] += 1
            elif attempt["ended_at"] is not None and write["at"] > attempt["ended_at"]:
                counts[f"{name}, which ended at {attempt['ended_at']}"] += 1
            elif write["at"] < attempt["claimed_at"]:
                counts[f"{name}, before it was claimed"] += 1
        yield from (f"{count} rows in {what}" for what, count in counts.items())

    def _fences(self) -> Iterator[str]:
        for move in self._rows("SELECT * FROM chaos.moves WHERE fence < fence_before"):
            yield f"{move['job_id']}: the fence fell from {move['fence_before']} to {move['fence']}"

    def _files(self) -> Iterator[str]:
        for row in self._rows("SELECT * FROM checkpoints WHERE deleted_at IS NULL"):
            folder = Path(row["url"])
            if not folder.is_dir():
                yield f"checkpoint {folder} is registered and not there"
                continue
            sizes = sum(path.stat().st_size for path in folder.iterdir())
            if sizes != row["size_bytes"] or folder.name != f"step-{row['step']}":
                yield f"checkpoint {folder} has {sizes} bytes, not {row['size_bytes']}"
            yield from _unreadable(folder)
        for row in self._rows("SELECT * FROM artifacts WHERE deleted_at IS NULL"):
            folder = Path(row["url"])
            digest = hashlib.sha256()
            for path in sorted(folder.glob("*.safetensors")):
                digest.update(path.read_bytes())
            if not folder.is_dir() or digest.hexdigest() != row["digest"]:
                yield f"{row['kind']} {folder} is missing, or not what was registered"
        for job in self._jobs:
            url, state = job["adapter_url"], job["state"]
            if state == "completed" and url is not None and not Path(url).is_dir():
                yield f"{job['id']} points at {url}, which is not there"


def _unreadable(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            yield f"{path} is torn"


def _overlaps(lives: list[Row]) -> Iterator[str]:
    """Two sessions of trainers alive on one GPU; what a trainer forked is of its session."""
    by_gpu = defaultdict(list)
    for life in lives:
        by_gpu[life["gpu"]].append(life)
    for gpu, here in by_gpu.items():
        here.sort(key=lambda life: float(life["began"]))
        for number, first in enumerate(here):
            ended = float("inf") if first["ended"] is None else first["ended"]
            for second in here[number + 1 :]:
                if second["began"] + _BLUR_SECONDS >= ended:
                    continue
                if second["session"] != first["session"]:
                    yield (
                        f"{gpu}: trainer {second['pid']} began at {second['began']:.2f},"
                        f" {first['pid']} ended at {ended:.2f}"
                    )
