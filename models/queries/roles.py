"""Roles of the database, and the least that each of them needs.

owner    made the tables: migrations alone run as this one
app      dispatcher, API, commands: reads and writes rows, changes no table
worker   CPU and GPU workers: writes what belongs to jobs; keys, prices, limits and aliases are
         none of its business
reader   people and dashboards: the views of schema admin, and nothing else
"""

from __future__ import annotations

import re

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from models.errors import InputError, SetupError

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")

# What workers do not even read.
_HIDDEN_FROM_WORKERS = ("api_keys", "api_rates")
# Where they write: a job from its submit over the broker to its end, and their device.
_WRITTEN_BY_WORKERS = (
    *("adapter_names", "adapters", "artifacts", "attempts", "chat_turns", "chats", "checkpoints"),
    *("counters", "deliveries", "evaluations", "events", "gpu_needs", "gpu_samples", "gpus"),
    *("job_targets", "jobs", "lanes", "log_lines", "metrics", "outbox", "prepared_data", "samples"),
    *("tenants", "usage_days", "users"),
)


def grant_reader(session: Session, role: str) -> bool:
    """Grant the schema's views to `role`; True when it was made. It gets no other right.

    Raises InputError for a name; SetupError when the connection may not make roles.
    """
    return _grant(
        session,
        role,
        "GRANT USAGE ON SCHEMA admin TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA admin TO {role}",
        # Views that a later version adds.
        "ALTER DEFAULT PRIVILEGES IN SCHEMA admin GRANT SELECT ON TABLES TO {role}",
    )


def grant_app(session: Session, role: str) -> bool:
    """Let `role` read and write every row, and change no table. Returns and raises as above."""
    return _grant(
        session,
        role,
        "GRANT USAGE ON SCHEMA public, admin TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA admin TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        "REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {role}",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA admin GRANT SELECT ON TABLES TO {role}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public"
        " GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO {role}",
    )


def grant_worker(session: Session, role: str) -> bool:
    """Let `role` do what CPU and GPU workers do. Returns and raises as above.

    Tables that a later version adds are granted by running it again, after the upgrade.
    """
    return _grant(
        session,
        role,
        "GRANT USAGE ON SCHEMA public TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        "REVOKE SELECT ON {hidden} FROM {role}",
        "GRANT INSERT, UPDATE, DELETE ON {written} TO {role}",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )


def _grant(session: Session, role: str, *statements: str) -> bool:
    if not _NAME.fullmatch(role):
        raise InputError(
            f"{role!r} is no plain name of a role",
            where="role",
            remedy="use lower-case letters, digits and _",
        )
    known = session.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
    try:
        if known is None:
            session.execute(text(f'CREATE ROLE "{role}" NOLOGIN'))
        names = {
            "role": f'"{role}"',
            "hidden": ", ".join(_HIDDEN_FROM_WORKERS),
            "written": ", ".join(_WRITTEN_BY_WORKERS),
        }
        for statement in statements:
            session.execute(text(statement.format(**names)))
    except ProgrammingError as error:
        raise SetupError(
            f"the role could not be granted: {str(error.orig).partition(chr(10))[0]}",
            remedy="let the database's owner run this, or make the role first",
        ) from error
    return known is None
