"""What keeps a job from a GPU, in words, from the pool as it stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from models.abilities import release_words
from models.forecast import Placed
from models.gpu_wish import GpuWish
from models.paces import ASSUMED_SECONDS, Basis
from models.queries.gpus import GpuView
from models.queries.parties import Limits
from models.queries.pool import Pool, takes_jobs


@dataclass(frozen=True, slots=True)
class Blocker:
    reason: str
    sentence: str
    limit: str | None = None  # the limit's name, with …
    limit_of: str | None = None  # … whose it is: tenant or user


ITS_POD = Blocker(
    "its_pod",
    "It runs in a pod of its own (`celora k8s-job`), and waits for Kubernetes to start that.",
)


@dataclass(frozen=True, slots=True)
class Expected:
    start_at: datetime | None
    basis: str | None


def making_room(pool: Pool, job_id: str) -> Blocker | None:
    """For an urgent job that has taken a GPU, which its present job has still to leave."""
    victim = pool.makes_room.get(job_id)
    if victim is None:
        return None
    return Blocker("preempting", f"It is urgent: job {victim} makes room for it.")


def blocker(pool: Pool, lane_id: int, placed: Placed | None) -> Blocker:
    """Of a job in a lane; `placed` is what the forecast says of it, none when it never starts."""
    need = pool.needs[pool.lanes[lane_id][2]]
    if need.wish.own_pod:
        return ITS_POD
    fitting = [gpu for gpu in pool.gpus if gpu.id in need.gpu_ids]
    found = _no_gpu_takes_it(pool.gpus, fitting, need.wish)
    for key in _owners(pool, lane_id):
        found = found or _limit(pool.limits[key])
    if found is not None:
        return found
    if any(gpu.state == "free" for gpu in fitting if takes_jobs(gpu)):
        if placed is not None and (placed.start or 0) <= pool.play.turnover:
            said = "A GPU is free: the dispatcher places it within seconds. Is it running?"
            return Blocker("next", said)
        return Blocker("gpus_busy", "Jobs that go first take the GPUs that are free.")
    busy = sum(map(takes_jobs, fitting))
    if busy < sum(map(takes_jobs, pool.gpus)):
        said = f"All GPUs that have what it asks for ({need.wish.words()}) are busy ({busy})."
        return Blocker("such_gpus_busy", said)
    return Blocker("gpus_busy", f"All GPUs that take jobs are busy ({busy}).")


def may_come(pool: Pool, found: Blocker) -> bool:
    """Whether a job with this blocker will be placed without anybody's doing."""
    if found is ITS_POD:
        return False
    if found.reason in {"no_such_gpu", "no_worker", "gpus_held", "gpus_cordoned"}:
        return pool.play.order_only and found.reason != "no_such_gpu"
    return found.limit in {None, "max_running_jobs"}


def expected(pool: Pool, placed: Placed | None, found: Blocker) -> Expected:
    """When a job will start that `blocker` was asked about, and on what that rests."""
    if placed is not None and placed.start is not None:
        return Expected(pool.now + timedelta(seconds=placed.start), basis(placed))
    if found.limit == "gpu_hours_per_month":
        month = pool.now.astimezone(UTC).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        ) + timedelta(days=32)
        return Expected(month.replace(day=1), "not before the next month (UTC) begins")
    return Expected(None, None)


def basis(placed: Placed) -> str:
    """What an expected start rests on: the jobs that end before it, and how long they take."""
    if not placed.ended:
        return "a GPU is free"
    parts = []
    for kind, words in _LENGTHS.items():
        if count := placed.ended.get(kind):
            like = _jobs(placed.finished.get(kind, 0), "finished job")
            whose = "its" if count == 1 else "their"
            parts.append((count, words.format(like=like, whose=whose)))
    if len(parts) == 1:
        return f"after {_jobs(parts[0][0])}, {parts[0][1]}"
    total = _jobs(sum(count for count, _ in parts))
    return f"after {total}: " + ", ".join(f"{count} {words}" for count, words in parts)


_LENGTHS = {
    Basis.OWN: "by {whose} own pace",
    Basis.LIKE: "from {like} on the same base model",
    Basis.TENANT: "from {like} of the same tenant",
    Basis.RECENT: "from the last {like}",
    Basis.WORK: "by how long exports and chats take",
    Basis.ASSUMED: f"no measurement yet: assumed {ASSUMED_SECONDS / 60:g} min each",
}


def _jobs(count: int, what: str = "job") -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _no_gpu_takes_it(gpus: list[GpuView], fitting: list[GpuView], wish: GpuWish) -> Blocker | None:
    if not fitting and any(gpu.state != "stale" for gpu in gpus):
        return Blocker("no_such_gpu", _lacking(wish, gpus))
    if not any(map(takes_jobs, gpus)):
        return _none_takes_jobs(gpus, "")
    if not any(map(takes_jobs, fitting)):
        return _none_takes_jobs(fitting, f" that have what it asks for ({wish.words()})")
    return None


def _none_takes_jobs(gpus: list[GpuView], which: str) -> Blocker:
    """None of these GPUs takes jobs: from what would change most easily to what needs a person."""
    count = Counter(
        "cordoned" if gpu.cordoned and gpu.state != "stale" else gpu.state for gpu in gpus
    )
    if count["held"]:
        said = f"Other processes hold the memory of the GPUs{which}; see `celora gpus`."
        return Blocker("gpus_held", said)
    if count["cordoned"]:
        return Blocker("gpus_cordoned", f"The GPUs{which} are cordoned; see `celora gpus`.")
    if which:
        return Blocker("no_worker", f"No worker runs on the GPUs{which}; see `celora gpus`.")
    return Blocker("no_worker", "No GPU worker is running; `celora gpu-worker` starts one.")


def _lacking(wish: GpuWish, gpus: list[GpuView]) -> str:
    """Which of its wishes no GPU meets."""
    largest = max((gpu.memory_bytes for gpu in gpus), default=0)
    if wish.memory_bytes > largest:
        asked = GpuWish(memory_bytes=wish.memory_bytes).words()
        return (
            f"No GPU has the memory it asks for ({asked}); the largest has {largest / 1e9:.3g} GB."
        )
    if wish.model and not any(wish.model in gpu.model.lower() for gpu in gpus):
        models = ", ".join(sorted({gpu.model for gpu in gpus}))
        return f"No GPU is of the model it asks for ({wish.model}); there are: {models}."
    for name, value in sorted(wish.plain_labels.items()):
        if not any(gpu.labels.get(name) == value for gpu in gpus):
            return f"No GPU carries the label it asks for ({name}={value}); see `celora gpus`."
    needed = wish.abilities.items()
    if needed and not any(needed <= gpu.versions.get("abilities", {}).items() for gpu in gpus):
        return (
            f"It needs {release_words(wish.labels)}, and those of the GPUs are of an earlier"
            " version: start them anew with the new one."
        )
    return f"No GPU has all that it asks for together ({wish.words()}); see `celora gpus`."


def _owners(pool: Pool, lane_id: int) -> tuple[tuple[str, int], tuple[str, int]]:
    tenant, user, _ = pool.lanes[lane_id]
    return ("tenant", tenant), ("user", user)


def _limit(limits: Limits) -> Blocker | None:
    """The limit that is reached, in the order of the placement."""
    who = limits.who[0].upper() + limits.who[1:]
    if limits.max_running_jobs is not None and limits.max_running_jobs <= limits.running:
        name = "max_running_jobs"
        said = (
            f"{who} may run {_jobs(limits.max_running_jobs)} at once ({name}),"
            f" and {limits.running} {'runs' if limits.running == 1 else 'run'}."
        )
    elif (
        limits.gpu_hours_per_month is not None
        and limits.gpu_hours_per_month * 3600 <= limits.gpu_seconds
    ):
        name = "gpu_hours_per_month"
        said = (
            f"{who} may use {limits.gpu_hours_per_month:g} GPU-hours a month ({name}),"
            f" and has used {limits.gpu_seconds / 3600:.4g}."
        )
    elif limits.disk_bytes is not None and limits.disk_bytes <= limits.disk_used_bytes:
        name = "disk_bytes"
        said = (
            f"{who} may keep {limits.disk_bytes / 1e9:.3g} GB on disk ({name}),"
            f" and keeps {limits.disk_used_bytes / 1e9:.3g} GB."
        )
    else:
        return None
    return Blocker("limit", said, name, limits.of)
