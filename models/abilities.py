"""What a worker must know to run a job: beyond training, and beyond the version before this one.

Abilities are written like labels of a GPU, among the versions that its worker reports: each new
session of a worker replaces them whole, and an earlier worker has none. A job that uses something
new asks for them. So a dispatcher gives it to workers that can; one of an earlier version looks
among the GPU's own labels, does not find it, and leaves such jobs alone.
"""

from __future__ import annotations

from models.spec import PREFERENCE_ROLES, JobSpec
from models.states import Purpose, Stage

PREFIX = "celora/"

# Releases that brought something to jobs, the newest last. With the next one that does, its number
# is added here and `_is_new` tells what that one brought: one version back is all that has to work.
RELEASES = ("0.2",)

ABILITIES = {f"{PREFIX}{name}": "yes" for name in (Stage.EXPORT, Stage.GENERATE, *RELEASES)}


def abilities_for(spec: JobSpec, purpose: Purpose) -> dict[str, str]:
    if purpose is not Purpose.TUNE:
        return _ability(purpose.first_stage)
    return _ability(RELEASES[-1]) if _is_new(spec) else {}


def preparation_queue(queue: str, ability: str | None) -> str:
    """Where a cpu worker that has the ability takes its tickets from; an earlier one does not."""
    return f"{queue}.{ability.removeprefix(PREFIX)}" if ability else queue


def release_words(labels: dict[str, str], worker: str = "worker") -> str:
    """For people, of a job's labels: "a worker of version 0.2 or later"; empty: any will do."""
    asked = [name.removeprefix(PREFIX) for name in labels if name.startswith(PREFIX)]
    if not asked:
        return ""
    first = next((one for one in RELEASES if one in asked), RELEASES[0])
    return f"a {worker} of version {first} or later"


def _is_new(spec: JobSpec) -> bool:
    """Whether a worker of the version before fails the job, or leaves out what it asks for."""
    return (
        spec.method == "dpo"
        or not PREFERENCE_ROLES.isdisjoint(spec.columns)
        # Passed over by an earlier worker: it gives no version, sends no message.
        or spec.adapter_name is not None
        or bool(spec.notify)
        or any((spec.track_name, spec.track_entity, spec.track_tags))
    )


def _ability(name: str) -> dict[str, str]:
    return {f"{PREFIX}{name}": ABILITIES[f"{PREFIX}{name}"]}
