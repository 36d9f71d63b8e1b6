"""How long what jobs leave behind is kept: rules of a tenant, in `tenants.retention`.

A rule only ever speaks of what nothing needs any more. Whatever a job that waits, runs or is paused
still needs stays, and so does that of a failed job, which may be run again, until its age is over.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InputError


class Rule(BaseModel):
    """When one kind of thing goes: as soon as one of its limits is passed. None: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_age_days: float | None = Field(None, ge=0, le=36_500)
    keep: int | None = Field(None, ge=0, le=1_000_000_000)  # the newest; see each kind for whose
    max_bytes: int | None = Field(None, ge=0, le=2**62)  # of the tenant; the newest stay


class CheckpointRule(Rule):
    """`keep` counts within a job, once it is over; its age counts from the job's end."""

    max_age_days: float | None = Field(7, ge=0, le=36_500)  # of a job that has completed
    failed_max_age_days: float | None = Field(30, ge=0, le=36_500)  # of one failed or cancelled


class PreparedRule(Rule):
    """The age counts from its last use; `keep` and `max_bytes` within the tenant.

    Data that several tenants use goes when the rules of all of them let it go.
    """

    max_age_days: float | None = Field(30, ge=0, le=36_500)


class LogRule(Rule):
    """The age counts from the job's end; `keep` counts jobs of the tenant."""

    max_age_days: float | None = Field(90, ge=0, le=36_500)


class AdapterRule(Rule):
    """Adapters, and models of method `full`: kept for ever unless a tenant says otherwise.

    `keep` counts within the tenant, and so does `max_bytes`; exports are counted apart.
    """


class RetentionRules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: CheckpointRule = CheckpointRule()
    prepared: PreparedRule = PreparedRule()
    logs: LogRule = LogRule()
    adapters: AdapterRule = AdapterRule()


def parse_rules(fields: Any) -> RetentionRules:
    """The rules that a tenant's JSON says. Raises InputError, which names the field."""
    try:
        return RetentionRules.model_validate(fields, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"these rules cannot be read: {first['msg']}",
            where=f"retention.{place}" if place else "retention",
            remedy='write {"checkpoints": {"max_age_days": 7}}; docs/storage.md lists all',
        ) from None
